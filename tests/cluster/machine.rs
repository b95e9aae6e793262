//! What is done to the machine of a server: its disk fills up, its wall clock moves.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How much a server's own disk takes, in MiB.
const DISK_MIB: u64 = 256;

/// Adds what a file says to the wall clock of a process into which it is loaded. The monotonic clock stays as it is, as when somebody sets
/// the time of a machine.
const CLOCK_SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long *moved_s;

__attribute__((constructor)) static void find(void) {
    const char *path = getenv("GREY_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *page = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) moved_s = page;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME && moved_s) now->tv_sec += *moved_s;
    return failed;
}
"#;

/// A command as it is run by another one, which becomes it.
pub fn within(outer: &[&str], command: &Command) -> Command {
    let (program, arguments) = outer.split_first().unwrap();
    let mut run = Command::new(program);
    run.args(arguments).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => run.env(name, value),
            None => run.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        run.current_dir(directory);
    }
    run
}

/// A disk of its own for one server, in a mount namespace of its own, where the machine allows one.
pub struct SmallDisk {
    holder: Child,
    mounted_at: PathBuf,
}

impl SmallDisk {
    /// One that is seen at this path by whoever is started on it; `None` where none can be mounted here.
    pub fn mount(at: &Path) -> Option<SmallDisk> {
        std::fs::create_dir(at).unwrap();
        let script = format!(
            "mount -t tmpfs -o size={DISK_MIB}m none '{}' && echo mounted && exec sleep infinity",
            at.display()
        );
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--map-root-user", "sh", "-c", &script]);
        let mut holder = unshare.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        if said.trim() != "mounted" {
            drop(holder.kill());
            holder.wait().unwrap();
            return None;
        }
        Some(SmallDisk { holder, mounted_at: at.to_owned() })
    }

    /// The same command, to be started on this disk.
    pub fn enter(&self, command: &Command) -> Command {
        let holder = self.holder.id().to_string();
        let enter = ["nsenter", "--target", &holder, "--user", "--preserve-credentials", "--mount", "--"];
        within(&enter, command)
    }

    /// Where the disk is seen from outside.
    pub fn seen_at(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.mounted_at.strip_prefix("/").unwrap())
    }

    /// Leaves no room.
    pub fn fill(&self) {
        let mut file = File::create(self.seen_at().join("fill")).unwrap();
        let piece = vec![0; 64 * 1024];
        loop {
            match file.write(&piece) {
                Ok(1..) => {}
                Ok(0) => panic!("nothing can be written, and it is no error"),
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub fn free(&self) {
        std::fs::remove_file(self.seen_at().join("fill")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// A wall clock that can be moved under processes that run.
pub struct Clock {
    shared_object: PathBuf,
}

impl Clock {
    /// Compiles what is loaded into processes, with the compiler that links this test.
    pub fn new(directory: &Path) -> Clock {
        let (source, shared_object) = (directory.join("clock.c"), directory.join("clock.so"));
        std::fs::write(&source, CLOCK_SOURCE).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shared_object).arg(&source);
        assert!(compiler.status().unwrap().success());
        Clock { shared_object }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.shared_object.with_file_name(format!("{name}.clock"))
    }

    /// Has a command see the clock of a machine.
    pub fn wear(&self, name: &str, command: &mut Command) {
        let file = self.file(name);
        if !file.exists() {
            std::fs::write(&file, 0i64.to_le_bytes()).unwrap();
        }
        command.env("LD_PRELOAD", &self.shared_object).env("GREY_TEST_CLOCK", file);
    }

    /// Moves the clock of a machine: so many seconds from the true time on.
    pub fn set(&self, name: &str, seconds: i64) {
        let file = File::options().write(true).create(true).truncate(false).open(self.file(name)).unwrap();
        file.write_all_at(&seconds.to_le_bytes(), 0).unwrap();
    }
}
