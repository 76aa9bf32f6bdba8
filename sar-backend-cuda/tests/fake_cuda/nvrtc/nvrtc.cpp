// libnvrtc: "compiles" a kernel file to the names of its kernels.
#include "../cubin.h"
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <regex>
#include <string>
#include <vector>

#define NVRTC_API extern "C" __attribute__((visibility("default")))

namespace {

// nvrtcResult, as in nvrtc.h.
enum Result {
    SUCCESS = 0,
    INVALID_INPUT = 3,
    INVALID_PROGRAM = 4,
    INVALID_OPTION = 5,
    COMPILATION = 6,
};

struct Program {
    std::string source, name, log, cubin;
    std::map<std::string, std::string> headers;
};

std::atomic<int> compilations{0};

const char* text_of(const char* variable) {
    const char* value = std::getenv(variable);
    return value ? value : "";
}

// The value of an option given as "--name=value".
std::string value_of(const std::vector<std::string>& options, const std::string& name) {
    for (const std::string& option : options) {
        if (option.rfind(name + "=", 0) == 0) return option.substr(name.size() + 1);
    }
    return "";
}

bool known(const std::string& option) {
    static const std::regex options("--gpu-architecture=(sm|compute)_[0-9]+|--std=c\\+\\+(11|14|17|20)|"
                                    "--fmad=(true|false)|--ptxas-options=-v|-default-device|-D[A-Z0-9_]+");
    return std::regex_match(option, options);
}

// Names that the source registers; of one that a macro makes, the part before its argument.
std::string kernels_of(const std::string& source) {
    static const std::regex registration("REGISTER_KERNEL\\((\\w+)(##\\w+)?\\)");
    std::string names;
    for (std::sregex_iterator at(source.begin(), source.end(), registration), end; at != end; ++at) {
        names += " " + at->str(1) + (at->length(2) > 0 ? "*" : "");
    }
    return names;
}

Result compile(Program& program, const std::vector<std::string>& options) {
    for (const std::string& option : options) {
        if (known(option)) continue;
        program.log = "nvrtc: error: invalid value for " + option;
        return INVALID_OPTION;
    }
    static const std::regex include("#include \"([^\"]+)\"");
    for (std::sregex_iterator at(program.source.begin(), program.source.end(), include), end; at != end; ++at) {
        if (program.headers.count(at->str(1))) continue;
        program.log = program.name + ": catastrophic error: cannot open source file \"" + at->str(1) + "\"";
        return COMPILATION;
    }
    const bool broken = program.name == std::string(text_of("SAR_FAKE_NVRTC_BREAKS")) + ".cu";
    if (broken || program.source.find("SYNTAX ERROR") != std::string::npos) {
        program.log = program.name + "(1): error: expected an expression";
        return COMPILATION;
    }
    const std::string arch = value_of(options, "--gpu-architecture");
    if (arch.rfind("sm_", 0) != 0) return SUCCESS; // PTX alone: no CUBIN
    bool bf16 = false;
    for (const std::string& option : options) bf16 |= option == "-DACT_BF16";
    program.cubin = std::string(fake::CUBIN_MAGIC) + " " + arch + (bf16 ? " bf16 " : " f32 ") + program.name +
                    kernels_of(program.source) + "\n";
    if (program.cubin.size() > fake::CUBIN_BYTES) std::abort();
    program.cubin.resize(fake::CUBIN_BYTES);
    program.log = "ptxas info    : 0 bytes gmem\n";
    return SUCCESS;
}

} // namespace

// How often a program was compiled, with success or without.
NVRTC_API int sar_fake_compilations() { return compilations; }

NVRTC_API int nvrtcVersion(int* major, int* minor) {
    *major = 12;
    *minor = 9;
    std::sscanf(text_of("SAR_FAKE_NVRTC_VERSION"), "%d.%d", major, minor);
    return SUCCESS;
}

NVRTC_API int nvrtcCreateProgram(Program** program, const char* source, const char* name, int headers,
                                 const char* const* texts, const char* const* names) {
    if (program == nullptr || source == nullptr || headers < 0) return INVALID_INPUT;
    *program = new Program;
    (*program)->source = source;
    (*program)->name = name ? name : "default_program";
    for (int i = 0; i < headers; i++) (*program)->headers[names[i]] = texts[i];
    return SUCCESS;
}

NVRTC_API int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    if (program == nullptr) return INVALID_PROGRAM;
    compilations++;
    return compile(*program, std::vector<std::string>(options, options + count));
}

NVRTC_API int nvrtcGetProgramLogSize(Program* program, size_t* size) {
    *size = program->log.size() + 1; // with the null at its end
    return SUCCESS;
}

NVRTC_API int nvrtcGetProgramLog(Program* program, char* log) {
    std::memcpy(log, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}

NVRTC_API int nvrtcGetCUBINSize(Program* program, size_t* size) {
    *size = program->cubin.size();
    return SUCCESS;
}

NVRTC_API int nvrtcGetCUBIN(Program* program, char* cubin) {
    if (program->cubin.empty()) return INVALID_PROGRAM;
    std::memcpy(cubin, program->cubin.data(), program->cubin.size());
    return SUCCESS;
}

// There is none: kernels are executed as they are written.
NVRTC_API int nvrtcGetPTXSize(Program*, size_t* size) {
    *size = 1;
    return SUCCESS;
}

NVRTC_API int nvrtcGetPTX(Program*, char* ptx) {
    *ptx = 0;
    return SUCCESS;
}

NVRTC_API int nvrtcDestroyProgram(Program** program) {
    if (program == nullptr || *program == nullptr) return INVALID_PROGRAM;
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

NVRTC_API const char* nvrtcGetErrorString(int result) {
    return result == SUCCESS ? "NVRTC_SUCCESS" : "NVRTC_ERROR";
}
