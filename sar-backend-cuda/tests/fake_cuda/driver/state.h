// Objects of the fake driver, and the checks at the door of its functions.
#pragma once
#include "../hooks.h"
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#define CUDA_API extern "C" __attribute__((visibility("default")))

namespace fake {

using Address = uint64_t;

struct Context {
    int device = 0;
    // The fault of earlier work, which every later call returns: the context is lost.
    Status sticky = SUCCESS;
};

// What a capture has recorded so far.
struct Capture {
    int mode;
    std::thread::id thread;
    bool invalid = false;
    std::vector<Work> nodes;
};

struct Stream {
    Context* context;
    std::deque<Work> pending;
    uint64_t submitted = 0;
    uint64_t done = 0;
    std::unique_ptr<Capture> capture;
};

struct Event {
    Context* context;
    Stream* stream = nullptr; // of the last record
    uint64_t position = 0;
    bool captured = false;
    bool timed = false;
};

struct Graph {
    std::vector<Work> nodes;
};

struct GraphExec {
    std::vector<Work> nodes;
};

struct Module {
    Context* context;
    std::string variant, file;
    std::vector<std::string> kernels;
};

struct Function {
    Module* module;
    std::string key; // "variant/name", as the emulator knows it
    unsigned allowed_shared;
};

// Handles that are alive. Objects are never freed, so that a stale handle is told from a live one.
template <class T> class Alive {
  public:
    T* add(T* object) {
        objects_.insert(object);
        return object;
    }
    T* find(void* handle) const {
        T* object = static_cast<T*>(handle);
        return objects_.count(object) ? object : nullptr;
    }
    bool remove(T* object) { return objects_.erase(object) == 1; }
    const std::set<T*>& all() const { return objects_; }

  private:
    std::set<T*> objects_;
};

struct State {
    std::recursive_mutex mutex;
    bool initialised = false;
    std::map<int, int> retained; // by device
    std::map<int, Context*> primary;
    Alive<Context> contexts;
    Alive<Stream> streams;
    Alive<Event> events;
    Alive<Graph> graphs;
    Alive<GraphExec> graph_execs;
    Alive<Module> modules;
    Alive<Function> functions;
    std::map<std::string, int> counts;
    std::vector<std::string> complaints;
    int fault_after = -1; // launches until one that faults; none where negative
};

State& state();
inline std::unique_lock<std::recursive_mutex> lock() {
    return std::unique_lock<std::recursive_mutex>(state().mutex);
}

// The calling thread's context; null where it has none or a destroyed one.
Context* current_context();

// What every function that needs a context checks: started, current, alive, not lost to a fault.
Status ready();
// As ready, for a function that touches a stream; complains about a destroyed one.
Status ready(void* handle, Stream*& stream);

// For functions that a thread must not call while it captures ("potentially unsafe" in the
// documentation of cuThreadExchangeStreamCaptureMode): invalidates its captures where it does.
Status unsafe_in_capture(const char* call);

// Runs a stream's work up to a position; a fault is the context's from then on.
Status drain(Stream& stream, uint64_t position);
inline Status drain(Stream& stream) { return drain(stream, stream.submitted); }

// Whether a range lies in memory that is held now, in the order of the stream.
Status check_range(const std::string& who, Range range);
// Whether an address is one that the fake's allocator ever gave.
bool is_device_address(Address address);
// Guards around every held allocation.
void check_guards();
// Releases all memory, with its context; what is still held is a leak, unless the context is lost.
void release_memory(bool complain_of_leaks);
size_t held_allocations();
size_t held_pinned();

// A number from the environment.
long long setting(const char* name, long long otherwise);

// Bytes of shared memory that a block may have: less on workstation cards than on an A100.
unsigned most_shared();

} // namespace fake
