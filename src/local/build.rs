//! Compiles the holder of local sandboxes. The library contains the program.
//!
//! If the compilation fails, the crate still compiles, and local sandboxes return an error at run
//! time. `NOXRUNNER_NO_HOLDER=1` skips the compilation.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

const SOURCE: &str = "src/local/holder";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(noxrunner_holder)");
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=NOXRUNNER_NO_HOLDER");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let wanted = !variable("CARGO_FEATURE_LOCAL").is_empty()
        && variable("CARGO_CFG_TARGET_OS") == "linux"
        && matches!(
            variable("CARGO_CFG_TARGET_ARCH").as_str(),
            "x86_64" | "aarch64" | "riscv64"
        )
        && variable("NOXRUNNER_NO_HOLDER") != "1";
    if !wanted {
        return;
    }
    let program = Path::new(&variable("OUT_DIR")).join("holder");
    // A static program starts faster and needs no C library at run time.
    let linking: [&[&str]; 2] = [&["-C", "target-feature=+crt-static"], &[]];
    let mut errors = String::new();
    for flags in linking {
        match compile(&program, flags) {
            Ok(()) => {
                println!("cargo::rustc-cfg=noxrunner_holder");
                return;
            }
            Err(e) => errors = e,
        }
    }
    let last = errors.lines().last().unwrap_or_default();
    println!("cargo::warning=cannot compile the holder of local sandboxes: {last}");
}

fn compile(program: &Path, flags: &[&str]) -> Result<(), String> {
    let _ = fs::remove_file(program);
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()));
    rustc
        .arg(Path::new(SOURCE).join("main.rs"))
        .args(["--edition", "2024", "--crate-name", "noxrunner_holder"])
        .args(["--cap-lints", "allow"])
        .args(optimization())
        .args(["-C", "panic=abort", "-C", "strip=symbols"])
        .args(["-C", "relocation-model=static"])
        .args(flags)
        .arg("-o")
        .arg(program);
    if let Ok(target) = env::var("TARGET") {
        rustc.args(["--target", &target]);
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = std::ffi::OsString::from("linker=");
        option.push(linker);
        rustc.arg("-C").arg(option);
    }
    let output = rustc.output().map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Returns the optimization flags. Debug builds do not optimize the holder, because the crate waits
/// for its compilation, which takes eight times as long with link-time optimization.
fn optimization() -> &'static [&'static str] {
    if env::var("OPT_LEVEL").is_ok_and(|level| level == "0") {
        return &["-Copt-level=0"];
    }
    &["-Copt-level=s", "-Clto=fat", "-Ccodegen-units=1"]
}
