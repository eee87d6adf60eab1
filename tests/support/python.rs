//! Python environments below the target directory, each created at first use.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use super::emulator::{HINT, home, is_skipped, repository};

/// Returns a Python interpreter with the packages that this requirements file of the repository lists.
///
/// Returns `None` if the test is to be skipped, after printing the reason.
///
/// # Panics
///
/// Panics if the environment cannot be created. Creating one requires `python3` with `venv`, and network
/// access at first use.
pub fn with(requirements: &str) -> Option<PathBuf> {
    if is_skipped() {
        return None;
    }
    let requirements = repository().join(requirements);
    let folder = requirements.parent().and_then(Path::file_name);
    let home = home(&folder.expect("a file in a folder").to_string_lossy());
    fs::create_dir_all(&home).expect("a folder below the target directory");
    // Concurrent processes wait for the one that installs the environment.
    let lock = File::create(home.join("lock")).expect("a lock file");
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

/// Runs a script of the repository with this input, and returns its output.
pub fn ask(python: &Path, script: &str, arguments: &[&str], input: String) -> String {
    let mut child = Command::new(python)
        .arg(repository().join(script))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the installed interpreter runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // Writes and reads concurrently, because either side may fill its pipe.
    let writing = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("its output");
    writing
        .join()
        .expect("no panic")
        .expect("the script reads its input");
    assert!(output.status.success(), "{script} {arguments:?} failed");
    String::from_utf8(output.stdout).expect("text")
}
