//! With the feature `emulator`: compiles the kernels for the CPU, each in both variants.

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=emu");
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
        let mut library = compiler();
        let (mut declarations, mut units) = (String::new(), String::new());
        for kernel in files(&root.join("kernels"), &["cu"]) {
            let stem =
                kernel.file_stem().expect("a file has a name").to_string_lossy().into_owned();
            for (variant, define) in VARIANTS {
                let unit = format!("sar_emu_unit_{stem}_{variant}");
                let source = out.join(format!("{unit}.cpp"));
                let object = source.with_extension("o");
                if modified(&object) < shared.max(modified(&kernel)) {
                    let text = format!(
                        "#include \"{}\"\nextern \"C\" {{ extern const int {unit}; const int {unit} = 1; }}\n",
                        kernel.display()
                    );
                    fs::write(&source, text).expect("OUT_DIR can be written");
                    compile(&root, &source, &object, define, variant);
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

    fn compiler() -> cc::Build {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(2)
            .debug(false)
            .define("EMU", None)
            .flag("-ffp-contract=off")
            .flag("-fno-strict-aliasing")
            .flag("-fno-exceptions")
            .flag_if_supported("-Wno-unknown-pragmas")
            // Faults that become errors of the launch: emu/runtime/sanitizer.h.
            .flag_if_supported("-fsanitize=alignment,null,bounds,shift-exponent")
            .flag_if_supported("-Wno-unused-variable");
        build
    }

    fn compile(root: &Path, source: &Path, object: &Path, define: &str, variant: &str) {
        let tool = compiler().get_compiler();
        let status = Command::new(tool.path())
            .args(tool.args())
            .arg(define)
            .arg(format!("-DEMU_VARIANT=\"{variant}\""))
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
