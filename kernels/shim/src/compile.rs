//! Compiles the shim with kernels into a program; also part of the build script.

use std::{
    io,
    num::NonZero,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    // A product and a sum are two roundings unless a kernel says fmaf.
    "-ffp-contract=off",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
];

/// What programs of any kernels have in common.
pub(crate) const PARTS: [&str; 3] = ["shim.cpp", TRUSTED, "main.cpp"];

/// The file that reads none of a kernel's memory, and computes the most.
const TRUSTED: &str = "tensor_core.cpp";

/// The compiler, and where the shim's headers lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compiler<'a> {
    /// A C++ compiler.
    pub(crate) path: &'a Path,
    /// `kernels/shim`.
    pub(crate) shim: &'a Path,
}

impl Compiler<'_> {
    /// Compiles kernels, which may include headers from `cuda`, and links them with the shim's
    /// own parts into `program`. Their objects are put beside it.
    ///
    /// # Errors
    /// The compiler failed; what it said is in the error.
    pub(crate) fn program(
        self,
        cuda: &Path,
        kernels: &[PathBuf],
        parts: &[PathBuf],
        program: &Path,
    ) -> io::Result<()> {
        let folder = program.parent().unwrap_or(Path::new("."));
        let objects = self.objects(cuda, kernels, folder)?;
        run(self.command().args(parts).args(objects).arg("-o").arg(program))
    }

    /// Compiles sources, as many at once as there are processors, to objects in a folder.
    ///
    /// # Errors
    /// The compiler failed; what it said is in the error.
    pub(crate) fn objects(
        self,
        cuda: &Path,
        sources: &[PathBuf],
        to: &Path,
    ) -> io::Result<Vec<PathBuf>> {
        let objects: Vec<PathBuf> = sources
            .iter()
            .map(|source| to.join(source.file_name().unwrap_or_default()).with_extension("o"))
            .collect();
        let next = AtomicUsize::new(0);
        let compile = || -> io::Result<()> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(source) = sources.get(at) else { return Ok(()) };
                let mut command = self.command();
                command.arg("-I").arg(cuda).arg("-I").arg(self.shim).args(["-x", "c++", "-c"]);
                if source.ends_with(TRUSTED) {
                    command.arg("-fno-sanitize=all");
                }
                run(command.arg(source).arg("-o").arg(&objects[at]))?;
            }
        };
        let at_once = thread::available_parallelism().map_or(1, NonZero::get);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(compile)).collect();
            let done = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
            };
            threads.into_iter().try_for_each(done)
        })?;
        Ok(objects)
    }

    fn command(self) -> Command {
        let mut command = Command::new(self.path);
        command.args(FLAGS);
        command
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}
