// Cross-entropy of rows of logits against the softmax of a teacher's: one block a row.
#include "prelude.cuh"
#include "reduce.cuh"
#include "schedule.cuh"
#include "block.cuh"
#include "softmax.cuh"

// A thread's part of both rows. `product` is Σ exp(t - teacher.largest) (x - base), where base is
// the student's `largest`: all its terms have one sign, so nothing cancels.
struct Pair {
    Softmax student, teacher;
    float product;
    int student_at, teacher_at;  // where the largest first stands
};

template <int N> DEV void locate(float before, float largest, const float (&x)[N], int first, int& at) {
    if (!(largest > before)) return;
#pragma unroll
    for (int i = N - 1; i >= 0; i--) at = x[i] == largest ? first + i : at;
}

template <int N>
DEV void add(Pair& pair, const float (&x)[N], const float (&t)[N], int first) {
    const Softmax student = pair.student, teacher = pair.teacher;
    add(pair.student, x);
    locate(student.largest, pair.student.largest, x, first, pair.student_at);
    const float base = base_of(pair.student.largest);
    pair.product -= teacher.sum * (base - base_of(student.largest));
    float largest = teacher.largest;
#pragma unroll
    for (int i = 0; i < N; i++) largest = fmaxf(largest, t[i]);
    locate(teacher.largest, largest, t, first, pair.teacher_at);
    if (largest > teacher.largest) {
        const float factor = expf(teacher.largest - largest);
        pair.teacher = {largest, teacher.sum * factor};
        pair.product *= factor;
    }
    const float teacher_base = base_of(pair.teacher.largest);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float p = expf(t[i] - teacher_base);
        pair.teacher.sum += p;
        pair.product += p * (x[i] - base);
    }
}

// Of each row of logits[rows, vocab], with its row t of teacher[teacher rows, vocab]:
//   lse, teacher_lse = log sum exp x, log sum exp t
//   loss             = lse - Σ softmax(t) x
//   hits             = 1 where both are largest at the same (first) code, else 0
//
// Memory: both rows once.
KERNEL void __launch_bounds__(256)
soft_cross_entropy_forward(float* __restrict__ loss, float* __restrict__ hits,
                           float* __restrict__ lse, float* __restrict__ teacher_lse,
                           const act* __restrict__ logits, const act* __restrict__ teacher,
                           int vocab, int tokens, int target_tokens, int target_shift) {
    SMEM(u64, shared, 32);
    float* const floats = reinterpret_cast<float*>(shared);
    const u32 row = blockIdx.x;
    const act* x = logits + (u64)row * vocab;
    const act* t = teacher + target_row(row, tokens, target_tokens, target_shift) * vocab;
    const int N = Lanes<act>::n;
    Pair pair = {{-INFINITY, 0.f}, {-INFINITY, 0.f}, 0.f, 0, 0};
    if (vocab % N == 0) {
        for (int i = threadIdx.x * N; i < vocab; i += blockDim.x * N) {
            float of_student[N], of_teacher[N];
            load16(x + i, of_student);
            load16(t + i, of_teacher);
            add(pair, of_student, of_teacher, i);
        }
    } else {
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
            const float of_student[1] = {to_float(x[i])}, of_teacher[1] = {to_float(t[i])};
            add(pair, of_student, of_teacher, i);
        }
    }
    const u64 at = block_largest(ranked(order_key(pair.student.largest), pair.student_at), shared);
    const u64 teacher_at =
        block_largest(ranked(order_key(pair.teacher.largest), pair.teacher_at), shared);
    const float largest = of_order_key((u32)(at >> 32));
    const float teacher_largest = of_order_key((u32)(teacher_at >> 32));
    const float sum = block_sum(rescaled(pair.student, largest), floats);
    const float teacher_sum = block_sum(rescaled(pair.teacher, teacher_largest), floats);
    // To the row's largest logits, first the student's and then the teacher's.
    const float moved = base_of(largest) - base_of(pair.student.largest);
    const float scale = expf(pair.teacher.largest - base_of(teacher_largest));
    const float product = block_sum((pair.product - pair.teacher.sum * moved) * scale, floats);
    if (threadIdx.x != 0) return;
    const float log_sum = logf(sum);
    loss[row] = log_sum - product / teacher_sum;
    lse[row] = largest + log_sum;
    teacher_lse[row] = teacher_largest + logf(teacher_sum);
    hits[row] = index_of_ranked(at) == index_of_ranked(teacher_at) ? 1.f : 0.f;
}
REGISTER_KERNEL(soft_cross_entropy_forward)

// In place: x[rows, vocab] becomes weight (softmax x - softmax t). A row of weight 0 becomes 0
// without being read, since it may hold NaN.
//
// Memory: the logits read and written once, the teacher's read once.
KERNEL void __launch_bounds__(256)
soft_cross_entropy_backward(act* __restrict__ logits, const act* __restrict__ teacher,
                            const float* __restrict__ lse, const float* __restrict__ teacher_lse,
                            ScaleTable table, ScaleWeights weights, int vocab, int target_tokens,
                            int target_shift) {
    const u32 row = blockIdx.x;
    const int tokens = table.first[table.scales];
    const float weight = weights.of_scale[scale_of(table, row % tokens)];
    act* x = logits + (u64)row * vocab;
    const int N = Lanes<act>::n;
    if (weight == 0.f) {
        zero_row(x, vocab);
        return;
    }
    const act* t = teacher + target_row(row, tokens, target_tokens, target_shift) * vocab;
    const float of_student = lse[row], of_teacher = teacher_lse[row];
    if (vocab % N == 0) {
        for (int i = threadIdx.x * N; i < vocab; i += blockDim.x * N) {
            float v[N], w[N];
            load16(x + i, v);
            load16(t + i, w);
#pragma unroll
            for (int j = 0; j < N; j++) {
                v[j] = weight * (expf(v[j] - of_student) - expf(w[j] - of_teacher));
            }
            store16(x + i, v);
        }
    } else {
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
            const float v = expf(to_float(x[i]) - of_student) - expf(to_float(t[i]) - of_teacher);
            x[i] = from_float<act>(weight * v);
        }
    }
}
REGISTER_KERNEL(soft_cross_entropy_backward)
