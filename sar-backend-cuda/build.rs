//! With the feature `emulator`: compiles the kernels for the CPU, each in both variants. Where `SAR_EMU_FUSED` is
//! set, products are fused with sums as `ptxas` fuses them on a GPU, but in the files of `kernels/unfused.txt`.

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=emu");
    println!("cargo:rerun-if-env-changed=SAR_EMU_FUSED");
    #[cfg(feature = "emulator")]
    emulator::build();
}

#[cfg(feature = "emulator")]
mod emulator {
    use std::fmt::Write as _;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::SystemTime;
    use std::{env, fs};

    const VARIANTS: [(&str, &str); 2] = [("f32", "-DACT_F32"), ("bf16", "-DACT_BF16")];

    /// One object a kernel file and variant, made anew where a source is newer; then one library.
    pub fn build() {
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
        let shared = newest(&[files(&root.join("emu"), &["h", "cpp"]), headers(&root)].concat());
        let mut library = compiler(false);
        let fused = env::var_os("SAR_EMU_FUSED").is_some();
        let unfused = fs::read_to_string(root.join("kernels/unfused.txt")).expect("it is there");
        let (mut declarations, mut units) = (String::new(), String::new());
        for kernel in files(&root.join("kernels"), &["cu"]) {
            let stem =
                kernel.file_stem().expect("a file has a name").to_string_lossy().into_owned();
            let fused = fused && !unfused.lines().any(|line| line == stem);
            for (variant, define) in VARIANTS {
                let unit = format!("sar_emu_unit_{stem}_{variant}");
                let source = out.join(format!("{unit}.cpp"));
                let object = source.with_extension(if fused { "fused.o" } else { "o" });
                if modified(&object) < shared.max(modified(&kernel)) {
                    let text = format!(
                        "#include \"{}\"\nextern \"C\" {{ extern const int {unit}; const int {unit} = 1; }}\n",
                        kernel.display()
                    );
                    fs::write(&source, text).expect("OUT_DIR can be written");
                    let name = format!("-DEMU_VARIANT=\"{variant}\"");
                    compile(&root, &source, &object, fused, &[define, &name]);
                }
                library.object(&object);
                writeln!(declarations, "extern \"C\" const int {unit};").expect("to a string");
                write!(units, "&{unit}, ").expect("to a string");
            }
        }
        // Kernels register themselves as their object is loaded; naming each keeps the linker from
        // leaving it out.
        let registry = out.join("registry.cpp");
        let text = format!(
            "{declarations}#include \"{}\"\nextern \"C\" const int* const sar_emu_units[] = {{{units}nullptr}};\n",
            root.join("emu/emulator.cpp").display()
        );
        fs::write(&registry, text).expect("OUT_DIR can be written");
        library.file(&registry).include(root.join("emu")).compile("sar_emu");
        println!("cargo:rustc-link-lib=pthread");
    }

    /// The CPU's own fused operations, where it has them, are a GPU's: one rounding of a product and a sum.
    fn compiler(fused: bool) -> cc::Build {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(2)
            .debug(false)
            .define("EMU", None)
            .flag(if fused { "-ffp-contract=fast" } else { "-ffp-contract=off" })
            .flag("-fno-strict-aliasing")
            .flag("-fno-exceptions")
            .flag_if_supported("-Wno-unknown-pragmas")
            // Faults that become errors of the launch: emu/runtime/sanitizer.h.
            .flag_if_supported("-fsanitize=alignment,null,bounds,shift-exponent")
            .flag_if_supported("-Wno-unused-variable");
        if fused {
            // On x86_64 the compiler has to be told that there are such operations.
            build.flag_if_supported("-mfma");
        }
        build
    }

    fn compile(root: &Path, source: &Path, object: &Path, fused: bool, defines: &[&str]) {
        let tool = compiler(fused).get_compiler();
        let status = Command::new(tool.path())
            .args(tool.args())
            .args(defines)
            .arg("-I")
            .arg(root.join("kernels"))
            .arg("-I")
            .arg(root.join("emu"))
            .arg("-c")
            .arg(source)
            .arg("-o")
            .arg(object)
            .status();
        let done = status.expect("a C++ compiler can be run").success();
        assert!(done, "{} does not compile for the CPU", source.display());
    }

    fn headers(root: &Path) -> Vec<PathBuf> {
        let mut found = files(&root.join("kernels"), &["cuh"]);
        found.push(root.join("build.rs"));
        found
    }

    fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("the crate has this folder");
        let mut found: Vec<PathBuf> = entries
            .map(|entry| entry.expect("the folder can be read").path())
            .filter(|path| {
                path.extension().is_some_and(|e| extensions.iter().any(|&wanted| e == wanted))
            })
            .collect();
        found.sort();
        found
    }

    fn newest(paths: &[PathBuf]) -> SystemTime {
        paths.iter().map(|path| modified(path)).max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn modified(path: &Path) -> SystemTime {
        fs::metadata(path).and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}
