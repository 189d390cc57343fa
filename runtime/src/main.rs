//! hull-runtime: the OCI runtime's command line, as podman, buildah and containerd call it, and the warden.
//! Arguments follow runc's. No argument-parsing crate and no async runtime: a command starts in well under a millisecond.

mod cli;

fn main() {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    std::process::exit(cli::main(&arguments));
}
