//! The emulator's own test: kernels with planted bugs are caught, sound ones give what CUDA gives.

use std::path::Path;
use std::process::Command;

/// Checks that the program makes at least; fewer would mean that some are gone.
const CHECKS: usize = 55;

#[test]
fn planted_bugs_are_found_and_sound_kernels_pass() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("emu").join("selftest.cpp");
    let target = format!("{}-unknown-{}-gnu", std::env::consts::ARCH, std::env::consts::OS);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = folder.join("selftest");
    // As the build script compiles kernels.
    let tool = cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .target(&target)
        .host(&target)
        .cargo_metadata(false)
        .out_dir(folder)
        .try_get_compiler()
        .expect("a C++ compiler");
    let flags = [
        "-DEMU",
        "-fno-strict-aliasing",
        "-ffp-contract=off",
        "-Wno-unknown-pragmas",
        "-fsanitize=alignment,null,bounds,shift-exponent",
        "-pthread",
    ];
    let built = tool.to_command().args(flags).arg(&source).arg("-o").arg(&program).output();
    let built = built.expect("the compiler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let run = Command::new(&program).output().expect("the program runs");
    let said = String::from_utf8_lossy(&run.stdout);
    let passed = said.lines().filter(|line| line.starts_with("ok")).count();
    assert!(run.status.success() && !said.contains("FAIL"), "{said}");
    assert!(passed >= CHECKS, "{passed} checks: {said}");
}
