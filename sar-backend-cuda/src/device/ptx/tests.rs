//! Hand-written PTX with planted bugs is refused, and sound PTX gives what a GPU gives.

use super::grid::{Order, Shape, run};
use super::memory::Global;
use super::operations::{WARP, operation};
use super::program::programs;

/// Declarations that all bodies share; `%rd1` is the address of `out`, and `%r1` the thread's number.
const HEAD: &str = "
.extern .shared .align 16 .b8 dynamic_shared_[];
.visible .entry planted(
    .param .u64 planted_param_0
)
.maxntid 64, 1, 1
{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<40>;
    .reg .b32 %f<9>;
    .reg .b64 %rd<9>;
    .shared .align 16 .b8 tile[1024];
    .local .align 4 .b8 own[8];
    ld.param.u64 %rd1, [planted_param_0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    mov.u64 %rd3, tile;
    add.s64 %rd4, %rd3, %rd2;
    add.s64 %rd5, %rd1, %rd2;
";

/// Runs a body with one block of `threads` threads on 64 words, which are 0, 1, 2 and so on at first.
fn words(body: &str, threads: usize, order: u64) -> Result<Vec<u32>, String> {
    words_of_blocks(body, 1, threads, order)
}

fn words_of_blocks(
    body: &str,
    blocks: u32,
    threads: usize,
    order: u64,
) -> Result<Vec<u32>, String> {
    let text = format!("{HEAD}{body}\n    ret;\n}}\n");
    let programs = programs(&text)?;
    let mut memory: Vec<u128> =
        (0..16u128).map(|i| (0..4).fold(0, |all, j| all | (4 * i + j) << (32 * j))).collect();
    let address = memory.as_mut_ptr() as u64;
    let mut global = Global::new(vec![(address, 256)]);
    let shape = Shape { grid: [blocks, 1, 1], threads, shared: 64 };
    run(&programs["planted"], shape, &address.to_le_bytes(), &mut global, Order(order))?;
    Ok(memory.iter().flat_map(|&four| (0..4).map(move |j| (four >> (32 * j)) as u32)).collect())
}

fn refused(body: &str, threads: usize) -> String {
    words(body, threads, 0).expect_err("planted")
}

#[test]
fn memory_ends_where_it_ends_and_accesses_are_aligned() {
    let fault = refused("ld.global.u32 %r2, [%rd5+4];", 64);
    assert!(fault.contains("are not held") && fault.contains("ld.global.u32"), "{fault}");
    let fault = refused("ld.global.v2.u32 {%r2, %r3}, [%rd1+4];", 1);
    assert!(fault.contains("is not aligned to 8 bytes"), "{fault}");
    let fault = refused("st.shared.u32 [%rd4+1088], %r1;", 1);
    assert!(fault.contains("not in the block's 1088 bytes"), "{fault}");
    let fault = refused("mov.u64 %rd6, own;\n st.local.u32 [%rd6+8], %r1;", 1);
    assert!(fault.contains("not in the thread's 8 bytes"), "{fault}");
    let found = words("ld.global.v2.u32 {%r2, %r3}, [%rd1+8];\n st.global.u32 [%rd1], %r3;", 1, 0);
    assert_eq!(found.unwrap()[0], 3);
}

/// Each thread writes a word and reads its neighbour's, `between` the two.
fn neighbours(between: &str) -> String {
    format!(
        "st.shared.u32 [%rd4], %r1;
         {between}
         xor.b32 %r2, %r1, 1;
         mul.wide.u32 %rd6, %r2, 4;
         add.s64 %rd6, %rd3, %rd6;
         ld.shared.u32 %r3, [%rd6];
         st.global.u32 [%rd5], %r3;"
    )
}

#[test]
fn threads_meet_in_shared_memory_behind_a_barrier_alone() {
    let fault = refused(&neighbours(""), 64);
    assert!(fault.contains("no barrier between"), "{fault}");
    let swapped: Vec<u32> = (0..64).map(|i| i ^ 1).collect();
    for order in [0, 1, 77] {
        assert_eq!(words(&neighbours("bar.sync 0;"), 64, order).unwrap(), swapped);
        assert_eq!(words(&neighbours("bar.warp.sync -1;"), 64, order).unwrap(), swapped);
    }
    // Across warps a barrier of the warp is not enough, and a write after reads needs another barrier.
    let across = neighbours("bar.warp.sync -1;").replace("%r1, 1;", "%r1, 32;");
    assert!(refused(&across, 64).contains("has not written"));
    let again = format!("{}\n st.shared.u32 [%rd4], %r3;", neighbours("bar.sync 0;"));
    assert!(refused(&again, 64).contains("which read it"));
    let again = format!("{}\n bar.sync 0;\n st.shared.u32 [%rd4], %r3;", neighbours("bar.sync 0;"));
    assert_eq!(words(&again, 64, 0).unwrap(), swapped);
}

#[test]
fn the_devices_memory_is_ordered_by_barriers_too() {
    let swap = |between: &str, kind: &str| {
        format!(
            "{between}
             xor.b32 %r2, %r1, 1;
             mul.wide.u32 %rd6, %r2, 4;
             add.s64 %rd6, %rd1, %rd6;
             ld.global{kind}.u32 %r3, [%rd6];
             st.global.u32 [%rd5], %r3;"
        )
    };
    assert!(refused(&swap("", ""), 64).contains("which read it"));
    assert!(refused(&swap("st.global.u32 [%rd5], %r1;", ""), 64).contains("which wrote it"));
    // What is read as constant must not be written, with or without a barrier.
    let own = "ld.global.nc.u32 %r3, [%rd5];\n bar.sync 0;\n st.global.u32 [%rd5], %r3;";
    assert!(refused(own, 64).contains("read as constant before"));
    let own = "st.global.u32 [%rd5], %r1;\n bar.sync 0;\n ld.global.nc.u32 %r3, [%rd5];";
    assert!(refused(own, 64).contains("wrote it"));
}

#[test]
fn blocks_of_a_grid_meet_nowhere() {
    let run = |body: &str| words_of_blocks(body, 2, 32, 0);
    let own = "mov.u32 %r2, %ctaid.x;
        mul.wide.u32 %rd6, %r2, 128;
        add.s64 %rd6, %rd5, %rd6;
        st.global.u32 [%rd6], %r2;";
    let found = run(own).unwrap();
    assert_eq!((found[31], found[32]), (0, 1));
    // A barrier orders the threads of its block, and no others.
    let same = "bar.sync 0;\n st.global.u32 [%rd5], %r1;\n bar.sync 0;";
    assert!(run(same).unwrap_err().contains("thread 0 of block 0, which wrote it"));
    let read = "ld.global.u32 %r2, [%rd5];\n bar.sync 0;\n st.global.u32 [%rd5], %r2;";
    assert!(run(read).unwrap_err().contains("no barrier"));
    let count = "atom.global.max.u32 %r2, [%rd1], %r1;";
    assert_eq!(run(count).unwrap()[0], 31);
}

#[test]
fn one_element_is_written_by_one_thread_unless_atomically() {
    assert!(refused("st.shared.u32 [%rd3], %r1;", 2).contains("which wrote it"));
    let count = "setp.ne.s32 %p1, %r1, 0;
        @%p1 bra $behind;
        mov.u32 %r9, 5;
        st.shared.u32 [%rd3], %r9;
    $behind:
        bar.sync 0;
        atom.shared.add.u32 %r2, [%rd3], 2;
        bar.sync 0;
        ld.shared.u32 %r3, [%rd3];
        st.global.u32 [%rd5], %r3;";
    assert_eq!(words(count, 64, 0).unwrap(), [5 + 2 * 64; 64]);
    let early = count.replace("2;\n        bar.sync 0;", "2;");
    assert!(early != *count && refused(&early, 64).contains("which changed it"));
    let unwritten =
        count.replace("st.shared.u32", "ld.shared.u32").replace("[%rd3], %r9", "%r9, [%rd4+256]");
    assert!(refused(&unwritten, 64).contains("has not written"));
}

#[test]
fn copies_have_come_once_they_are_waited_for() {
    let copy = |wait: &str| {
        format!(
            "mul.wide.u32 %rd6, %r1, 16;
             add.s64 %rd7, %rd3, %rd6;
             add.s64 %rd8, %rd1, %rd6;
             cp.async.cg.shared.global [%rd7], [%rd8], 16;
             {wait}
             ld.shared.u32 %r3, [%rd7+4];
             st.global.u32 [%rd5+128], %r3;"
        )
    };
    // A group that is not committed is not waited for.
    let early = ["", "cp.async.wait_group 0;", "cp.async.commit_group;\n cp.async.wait_group 1;"];
    for wait in early {
        assert!(refused(&copy(wait), 8).contains("was not waited for"), "{wait}");
    }
    let waited = "cp.async.commit_group;\n cp.async.wait_group 0;";
    assert_eq!(words(&copy(waited), 8, 0).unwrap()[32..36], [1, 5, 9, 13]);
    // Nor may anything else be written where a copy is on its way.
    let overwritten = format!("st.shared.u32 [%rd7], %r1;\n {waited}");
    assert!(refused(&copy(&overwritten), 8).contains("was not waited for"));
    let fault = refused("cp.async.cg.shared.global [%rd3], [%rd1+4], 16;", 1);
    assert!(fault.contains("aligned"), "{fault}");
}

#[test]
fn what_takes_several_threads_has_them() {
    let shuffle = "shfl.sync.bfly.b32 %r2|%p2, %r1, 16, 31, -1;\n st.global.u32 [%rd5], %r2;";
    let swapped: Vec<u32> = (0..64).map(|i| i ^ 16).collect();
    assert_eq!(words(shuffle, 64, 0).unwrap(), swapped);
    let guarded = shuffle.replace("shfl", "setp.lt.u32 %p1, %r1, 7;\n @%p1 shfl");
    assert!(refused(&guarded, 32).contains("names the threads 0xffffffff"));
    let fault = refused("setp.lt.u32 %p1, %r1, 7;\n @%p1 bar.sync 0;", 32);
    assert!(fault.contains("do not reach"), "{fault}");
    let fault = refused("setp.lt.u32 %p1, %r1, 32;\n @%p1 bra $end;\n bar.sync 0;\n $end:", 64);
    assert!(fault.contains("1 of 2 warps"), "{fault}");
    let fault = refused("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r2, %r3}, [%rd3];", 16);
    assert!(fault.contains("a whole warp"), "{fault}");
}

#[test]
fn threads_that_parted_meet_again() {
    // Each thread goes round the loop as often as its number, and all threads vote after the loop.
    let body = "mov.u32 %r2, 0;
    $again:
        setp.ge.u32 %p1, %r2, %r1;
        @%p1 bra $done;
        add.s32 %r2, %r2, 1;
        bra.uni $again;
    $done:
        setp.lt.u32 %p2, %r2, 3;
        vote.sync.ballot.b32 %r3, %p2, -1;
        add.s32 %r3, %r3, %r2;
        st.global.u32 [%rd5], %r3;";
    let expected: Vec<u32> = (0..64).map(|i| if i < 32 { 7 + i } else { i }).collect();
    assert_eq!(words(body, 64, 0).unwrap(), expected);
}

#[test]
fn threads_at_the_end_keep_nobody_waiting() {
    let body = |leave: &str| {
        format!(
            "setp.ge.u32 %p1, %r1, 40;
             @%p1 {leave};
             bar.warp.sync -1;
             vote.sync.ballot.b32 %r3, %p1, -1;
             st.global.u32 [%rd5], %r3;
         $end:"
        )
    };
    let mut expected: Vec<u32> = (0..64).collect();
    expected[..40].fill(0);
    for leave in ["ret", "bra $end"] {
        assert_eq!(words(&body(leave), 64, 0).unwrap(), expected, "{leave}");
    }
}

#[test]
fn all_warps_wait_at_the_same_barrier() {
    let body = "setp.lt.u32 %p1, %r1, 32;
        @%p1 bra $other;
        bar.sync 0;
        bra.uni $end;
    $other:
        bar.sync 0;
    $end:";
    assert!(refused(body, 64).contains("different barriers"));
}

#[test]
fn signed_numbers_keep_their_sign() {
    let body = "mov.b32 %r2, -5;
        st.shared.u32 [%rd3], %r2;
        ld.shared.s32 %rd6, [%rd3];
        shr.u64 %rd6, %rd6, 32;
        cvt.u32.u64 %r3, %rd6;
        ld.shared.u32 %rd7, [%rd3];
        shr.u64 %rd7, %rd7, 32;
        cvt.u32.u64 %r4, %rd7;
        st.global.v2.u32 [%rd1], {%r3, %r4};";
    assert_eq!(words(body, 1, 0).unwrap()[..2], [u32::MAX, 0]);
}

#[test]
fn shuffles_stay_within_their_segments() {
    let shuffle = |kind: &str, by: &str, clamp: &str| {
        words(
            &format!(
                "shfl.sync.{kind}.b32 %r2|%p2, %r1, {by}, {clamp}, -1;
                      selp.b32 %r3, %r2, 99, %p2;
                      st.global.u32 [%rd5], %r3;"
            ),
            32,
            0,
        )
        .unwrap()
    };
    assert_eq!(shuffle("up", "1", "0")[..4], [99, 0, 1, 2]);
    assert_eq!(shuffle("down", "2", "31")[28..32], [30, 31, 99, 99]);
    assert_eq!(shuffle("idx", "5", "31")[..3], [5, 5, 5]);
    // Segments of eight lanes: 31 - 7 in bits 8 to 12, the last lane of each segment in the low bits.
    assert_eq!(shuffle("idx", "5", "6175")[7..10], [5, 13, 13]);
    assert_eq!(shuffle("bfly", "1", "6175")[7..10], [6, 9, 8]);
}

#[test]
fn a_product_of_tiles_is_one() {
    // a[16x16], rows of 32 bytes, and b[16x8], rows of 16, lie in shared memory as `ldmatrix` takes them.
    let body = "
        mul.wide.u32 %rd6, %r1, 8;
        add.s64 %rd6, %rd3, %rd6;
        mov.b32 %r2, 0x40003f80;
        st.shared.v2.u32 [%rd6], {%r2, %r1};
        st.shared.v2.u32 [%rd6+256], {%r1, %r2};
        st.shared.v2.u32 [%rd6+512], {%r2, %r1};
        bar.sync 0;
        and.b32 %r3, %r1, 15;
        shr.u32 %r4, %r1, 4;
        mul.wide.u32 %rd7, %r3, 32;
        mul.wide.u32 %rd8, %r4, 16;
        add.s64 %rd7, %rd7, %rd8;
        add.s64 %rd7, %rd3, %rd7;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%rd7];
        mul.wide.u32 %rd8, %r3, 16;
        add.s64 %rd8, %rd3, %rd8;
        ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14, %r15}, [%rd8+512];
        mov.b32 %r20, 0;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r20, %r21, %r22, %r23}, {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%r20, %r20, %r20, %r20};
        st.global.u32 [%rd5], %r20;
        st.global.u32 [%rd5+128], %r23;";
    // The bytes as the lanes wrote them: pairs of 1 and 2, and each lane's number as a bf16 of tiny size.
    let halves = |lane: u32, swapped: bool| {
        let (pair, own) = ([1.0, 2.0], [half::bf16::from_bits(lane as u16).to_f64(), 0.0]);
        if swapped {
            [own[0], own[1], pair[0], pair[1]]
        } else {
            [pair[0], pair[1], own[0], own[1]]
        }
    };
    let row = |swapped| (0..32).flat_map(move |lane| halves(lane, swapped));
    let a: Vec<f64> = row(false).chain(row(true)).collect();
    let b: Vec<f64> = row(false).collect();
    let d = |i: usize, j: usize| (0..16).map(|k| a[16 * i + k] * b[8 * k + j]).sum::<f64>() as f32;
    let found = words(body, 32, 0).unwrap();
    for lane in 0..WARP {
        let (row, column) = (lane / 4, lane % 4 * 2);
        assert_eq!(f32::from_bits(found[lane]), d(row, column), "d0 of lane {lane}");
        assert_eq!(f32::from_bits(found[32 + lane]), d(row + 8, column + 1), "d3 of lane {lane}");
    }
}

#[test]
fn what_is_not_known_is_not_run() {
    assert!(refused("sin.approx.f32 %f1, %f2;", 1).contains("not known here"));
    assert!(refused("add.s32 %r2, %r1;", 1).contains("2 operands expected, 1 found"));
    assert!(refused("add.s32 %r99, %r1, %r1;", 1).contains("%r99 is no register"));
    assert!(refused("bra $nowhere;", 1).contains("a label that is nowhere"));
    assert!(refused("", 65).contains("compiled for 64 at most"));
}

/// An operation on numbers as registers hold them.
fn value(name: &str, operands: &[u64]) -> u64 {
    let (apply, count) = operation(name).unwrap_or_else(|| panic!("{name} is known"));
    assert_eq!(count, operands.len(), "{name}");
    let rows: Vec<[u64; WARP]> = operands.iter().map(|&value| [value; WARP]).collect();
    let zero = [0; WARP];
    let mut to = [0; WARP];
    apply(&mut to, core::array::from_fn(|i| rows.get(i).unwrap_or(&zero)));
    to[31]
}

#[test]
fn whole_numbers_are_those_of_the_isa() {
    let minus = |value: u32| u64::from(value.wrapping_neg());
    assert_eq!(value("add.s32", &[minus(1), 3]), 2);
    assert_eq!(value("mul.wide.s32", &[minus(3), 5]), (-15i64) as u64);
    assert_eq!(value("mul.wide.u16", &[0xffff, 0xffff]), 0xfffe_0001);
    assert_eq!(value("shl.b32", &[3, 31]), 1 << 31);
    assert_eq!(value("shl.b32", &[3, 32]), 0);
    assert_eq!(value("shr.s32", &[minus(8), 200]), minus(1));
    assert_eq!(value("shr.u64", &[1 << 63, 63]), 1);
    assert_eq!(value("div.u32", &[7, 0]), u64::from(u32::MAX));
    assert_eq!(value("rem.s32", &[minus(7), 4]), minus(3));
    assert_eq!(value("div.s32", &[1 << 31, minus(1)]), 1 << 31);
    assert_eq!(value("rem.s32", &[1 << 31, minus(1)]), 0);
    assert_eq!(value("bfi.b32", &[0xab, 0x1111_1111, 8, 8]), 0x1111_ab11);
    assert_eq!(value("bfi.b32", &[0xab, 0x1111_1111, 28, 8]), 0xb111_1111);
    assert_eq!(value("bfind.shiftamt.u32", &[1 << 20]), 11);
    assert_eq!(value("bfind.shiftamt.u32", &[0]), u64::from(u32::MAX));
    assert_eq!(value("cvt.s64.s32", &[minus(2)]), (-2i64) as u64);
    assert_eq!(value("setp.lt.s32", &[minus(1), 0]), 1);
    assert_eq!(value("setp.lt.u32", &[minus(1), 0]), 0);
}

#[test]
fn fractions_are_those_of_the_isa() {
    let bits = |value: f32| u64::from(value.to_bits());
    let nan = bits(f32::NAN);
    // 1 ± 2⁻²⁶ lies between two numbers, of which 1 is the nearest; rounded down, 1 - 2⁻²⁶ is the one below 1.
    let tiny = 2f32.powi(-13);
    assert_eq!(value("fma.rn.f32", &[bits(tiny), bits(tiny), bits(1.0)]), bits(1.0));
    assert_eq!(value("fma.rm.f32", &[bits(tiny), bits(-tiny), bits(1.0)]), bits(1f32.next_down()));
    assert_eq!(value("fma.rm.f32", &[bits(tiny), bits(tiny), bits(1.0)]), bits(1.0));
    // Likewise for a product below the precision of the sum in f64.
    let least = 2f32.powi(-60);
    assert_eq!(
        value("fma.rm.f32", &[bits(least), bits(-least), bits(1.0)]),
        bits(1f32.next_down())
    );
    assert_eq!(value("max.f32", &[nan, bits(-1.0)]), bits(-1.0));
    assert_eq!(value("max.f32", &[bits(-0.0), bits(0.0)]), bits(0.0));
    assert_eq!(value("min.f32", &[bits(0.0), bits(-0.0)]), bits(-0.0));
    assert_eq!(value("ex2.approx.ftz.f32", &[bits(-127.0)]), bits(0.0));
    assert_eq!(value("ex2.approx.ftz.f32", &[bits(-126.0)]), bits(2f32.powi(-126)));
    assert_eq!(value("cvt.sat.f32.f32", &[nan]), bits(0.0));
    assert_eq!(value("cvt.sat.f32.f32", &[bits(7.0)]), bits(1.0));
    // The first operand is the upper half.
    assert_eq!(value("cvt.rn.bf16x2.f32", &[bits(1.0), bits(2.0)]), 0x3f80_4000);
    assert_eq!(value("cvt.rn.bf16.f32", &[bits(1.0 + 2f32.powi(-8))]), 0x3f80);
    assert_eq!(value("cvt.rn.bf16.f32", &[nan]), 0x7fff);
    assert_eq!(value("cvt.rzi.u64.f64", &[f64::NAN.to_bits()]), 1 << 63);
    assert_eq!(value("cvt.rzi.u64.f64", &[(-1.5f64).to_bits()]), 0);
    for (relation, expected) in
        [("eq", 0), ("ne", 0), ("neu", 1), ("ltu", 1), ("lt", 0), ("nan", 1)]
    {
        assert_eq!(
            value(&format!("setp.{relation}.f32"), &[nan, bits(1.0)]),
            expected,
            "{relation}"
        );
    }
}
