//! The two Squid helpers as Squid runs them: programs on pipes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

struct Helper {
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Helper {
    fn start(program: &str, arguments: &[&std::ffi::OsStr]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let questions = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, questions, answers }
    }

    fn ask(&mut self, question: &[u8]) -> String {
        self.questions.as_mut().unwrap().write_all(question).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer
    }

    fn end(mut self) {
        drop(self.questions.take());
        assert!(self.child.wait().unwrap().success(), "a helper ends well when Squid closes its input");
    }
}

#[test]
fn sni_helper_answers_each_channel_and_survives_garbage() {
    let mut helper = Helper::start(env!("CARGO_BIN_EXE_sni-helper"), &[]);
    assert_eq!(helper.ask(b"0 snichk api.example.com api.example.com 5 -\n"), "0 OK\n");
    assert_eq!(helper.ask(b"42 snichk api.example.com - 6 -\n"), "42 ERR\n");
    // The first line has no channel and gets no answer; the second is far above the cap; then all is well again.
    assert_eq!(helper.ask(b"\xff\xfe\x00 no channel\n7 snichk a.example b.example 1 -\n"), "7 ERR\n");
    let mut long = b"8 snichk ".to_vec();
    long.extend(std::iter::repeat_n(b'a', 100_000));
    long.push(b'\n');
    assert_eq!(helper.ask(&long), "8 ERR\n");
    assert_eq!(helper.ask(b"9 snichk a.example a.example 1\n"), "9 OK\n");
    helper.end();
}

#[test]
fn squid_auth_follows_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    let hash =
        |text: &str| hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref());
    std::fs::write(&path, format!("tasks:{}\n", hash("right"))).unwrap();
    let mut helper = Helper::start(env!("CARGO_BIN_EXE_squid-auth"), &[path.as_os_str()]);
    assert_eq!(helper.ask(b"0 tasks right\n"), "0 OK\n");
    assert_eq!(helper.ask(b"1 tasks wrong\n"), "1 ERR\n");
    assert_eq!(helper.ask(b"tasks right\n"), "OK\n");
    std::fs::write(&path, format!("models:{}\n", hash("right"))).unwrap();
    assert_eq!(helper.ask(b"2 tasks right\n"), "2 ERR\n", "taken out of the file");
    assert_eq!(helper.ask(b"3 models right\n"), "3 OK\n", "put into the file");
    std::fs::write(&path, "not a users file\n").unwrap();
    assert_eq!(helper.ask(b"4 models right\n"), "4 ERR\n", "a file that is not understood admits nobody");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(helper.ask(b"5 models right\n"), "5 ERR\n", "no file admits nobody");
    helper.end();
}

#[test]
fn squid_auth_wants_exactly_one_argument() {
    let output = Command::new(env!("CARGO_BIN_EXE_squid-auth")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("usage"));
}
