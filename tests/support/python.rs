//! A Python with packages of its own, below the target directory, made at first use.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use super::emulator::{HINT, home, is_skipped, repository};

/// The interpreter, with what this file of the repository requires. None means that the test is to be
/// skipped, the reason having been told.
///
/// # Panics
///
/// When it cannot be made: it needs `python3` with `venv`, and at first use the network.
pub fn with(requirements: &str) -> Option<PathBuf> {
    if is_skipped() {
        return None;
    }
    let requirements = repository().join(requirements);
    let folder = requirements.parent().and_then(Path::file_name);
    let home = home(&folder.expect("a file in a folder").to_string_lossy());
    fs::create_dir_all(&home).expect("a folder below the target directory");
    // Any number of processes may come here at once: one installs, the others wait.
    let lock = File::create(home.join("lock")).expect("a lock");
    lock.lock().expect("the lock");
    let wanted = fs::read_to_string(&requirements).expect("the requirements");
    let (marker, python) = (home.join("installed"), home.join("venv/bin/python"));
    if !(python.exists() && fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted)) {
        let _ = fs::remove_file(&marker);
        let _ = fs::remove_dir_all(home.join("venv"));
        run(Command::new("python3")
            .args(["-m", "venv"])
            .arg(home.join("venv")));
        let mut pip = Command::new(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            "--requirement",
        ]);
        run(pip.arg(&requirements));
        fs::write(&marker, wanted).expect("a marker");
    }
    Some(python)
}

fn run(command: &mut Command) {
    let done = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}; {HINT}"));
    assert!(
        done.status.success(),
        "{command:?} fails; {HINT}\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// What a script of the repository answers to this input.
pub fn ask(python: &Path, script: &str, arguments: &[&str], input: String) -> String {
    let mut child = Command::new(python)
        .arg(repository().join(script))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the interpreter just made");
    let mut stdin = child.stdin.take().expect("a pipe");
    // Both at once: either side may fill its pipe.
    let writing = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("its output");
    writing.join().expect("no panic").expect("it reads its input");
    assert!(output.status.success(), "{script} {arguments:?} fails");
    String::from_utf8(output.stdout).expect("text")
}
