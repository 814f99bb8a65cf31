//! Who may let an agent do something: questions, what ends them, and what their answers are worth. Pure; the clock is an
//! argument.
//!
//! A code ([`code`]) is worth one answer, of one person, in one conversation, to one action, for a few minutes. It is shown
//! only in that conversation: never on the bus, in a log or to an agent. Five wrong codes of the person who was asked close
//! what they were asked as denied. Nothing here ever grants more than the one action. The driver is [`desk`].

use std::collections::VecDeque;
use std::time::Instant;

use assistant_proto::event::ApprovalOutcome;

pub use self::code::{Answer, Code};
use crate::envelope::Person;

pub mod code;
pub mod desk;

/// Wrong codes after which a question counts as denied.
const MOST_WRONG: u8 = 5;
/// Closed questions that are remembered, to tell a replayed or expired code from a wrong one.
const REMEMBERED: usize = 256;

/// Identifies a question; also on the bus. Says nothing about the code.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ApprovalId(String);

impl ApprovalId {
    /// A new one.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A question that is open.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its identity.
    pub id: ApprovalId,
    /// Who was asked. Nobody else can answer.
    pub person: Person,
    /// What they were asked, made harmless.
    pub action: String,
    /// SHA-256 of what the agent asked for. A YES carries it back, to be compared with what is about to be allowed.
    pub fingerprint: [u8; 32],
    /// What the answer has to name.
    pub code: Code,
    /// When it closes by itself.
    pub expires: Instant,
    /// Whether anybody has seen it.
    pub shown: bool,
    wrong: u8,
}

impl Question {
    /// A question nobody has seen yet.
    #[must_use]
    pub fn new(person: Person, action: String, fingerprint: [u8; 32], code: Code, expires: Instant) -> Self {
        Self { id: ApprovalId::generate(), person, action, fingerprint, code, expires, shown: false, wrong: 0 }
    }
}

/// What an answer did.
#[derive(Debug)]
pub enum Verdict {
    /// The question is decided and closed.
    Decided {
        /// The question as it was open.
        question: Box<Question>,
        /// YES or NO.
        approved: bool,
    },
    /// The answer counts for nothing.
    Rejected {
        /// Why.
        why: Rejection,
        /// Questions that were closed as denied by this, one wrong code too many.
        denied: Vec<Question>,
    },
}

/// Why an answer counts for nothing. `Display` is for the person who answered. That a code is right in another
/// conversation, or for somebody else, is not told apart from a wrong one: it would help to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Nothing open has this code here.
    #[error("no open question of this conversation has that code")]
    Wrong {
        /// Wrong codes that are left before open questions are denied; none where nothing is open.
        left: Option<u8>,
    },
    /// It was answered before.
    #[error("that question was answered before ({}); a code works once", if *approved { "YES" } else { "NO" })]
    Replayed {
        /// What it was answered with.
        approved: bool,
    },
    /// It was open too long.
    #[error("that question expired before the answer came and was rejected")]
    Expired,
    /// The turn that asked is over.
    #[error("that question was withdrawn: the turn that asked it is over")]
    Withdrawn,
}

#[derive(Debug, Clone, Copy)]
enum Closed {
    Answered(bool),
    Unanswered,
    Withdrawn,
}

/// All questions.
#[derive(Debug, Default)]
pub struct Approvals {
    open: Vec<Question>,
    closed: VecDeque<(Code, Person, Closed)>,
}

impl Approvals {
    /// Whether a code is neither open nor remembered, anywhere.
    #[must_use]
    pub fn is_free(&self, code: &Code) -> bool {
        !self.open.iter().any(|question| question.code.matches(code))
            && !self.closed.iter().any(|(closed, _, _)| closed.matches(code))
    }

    /// Opens a question. Its code must be free.
    pub fn open(&mut self, question: Question) {
        self.open.push(question);
    }

    /// The questions a person could answer now.
    #[must_use]
    pub fn open_for(&self, person: &Person, now: Instant) -> Vec<Question> {
        self.open.iter().filter(|question| question.person == *person && question.expires > now).cloned().collect()
    }

    /// Whether a code means anything to a person: open, or answered before.
    #[must_use]
    pub fn knows(&self, person: &Person, code: &Code) -> bool {
        self.open.iter().any(|question| question.person == *person && question.code.matches(code))
            || self.closed.iter().any(|(closed, who, _)| who == person && closed.matches(code))
    }

    /// Somebody has seen it.
    pub fn shown(&mut self, id: &ApprovalId) {
        if let Some(question) = self.open.iter_mut().find(|question| question.id == *id) {
            question.shown = true;
        }
    }

    /// Takes an answer.
    pub fn answer(&mut self, person: &Person, answer: &Answer, now: Instant) -> Verdict {
        let rejected = |why| Verdict::Rejected { why, denied: Vec::new() };
        let theirs = |question: &Question| question.person == *person;
        if let Some(index) = self.open.iter().position(|q| theirs(q) && q.code.matches(&answer.code)) {
            if self.open.get(index).is_some_and(|question| question.expires <= now) {
                return rejected(Rejection::Expired);
            }
            let question = self.open.remove(index);
            self.remember(&question, Closed::Answered(answer.yes));
            return Verdict::Decided { question: Box::new(question), approved: answer.yes };
        }
        let known = self.closed.iter().rev().find(|(code, who, _)| who == person && code.matches(&answer.code));
        if let Some((_, _, how)) = known {
            return rejected(match how {
                Closed::Answered(approved) => Rejection::Replayed { approved: *approved },
                Closed::Unanswered => Rejection::Expired,
                Closed::Withdrawn => Rejection::Withdrawn,
            });
        }
        // Only the person who was asked can use up the attempts: others could else deny in their name.
        let mut left = None;
        for question in self.open.iter_mut().filter(|question| theirs(question)) {
            question.wrong = question.wrong.saturating_add(1);
            let remaining = MOST_WRONG.saturating_sub(question.wrong);
            left = Some(left.map_or(remaining, |left: u8| left.min(remaining)));
        }
        let denied: Vec<Question> = self.open.extract_if(.., |question| question.wrong >= MOST_WRONG).collect();
        for question in &denied {
            self.remember(question, Closed::Answered(false));
        }
        Verdict::Rejected { why: Rejection::Wrong { left }, denied }
    }

    /// Closes a question nobody answered in time, and says what that counts as. None when it is closed already.
    pub fn expire(&mut self, id: &ApprovalId) -> Option<(Question, ApprovalOutcome)> {
        let question = self.close(id, Closed::Unanswered)?;
        let outcome = if question.shown { ApprovalOutcome::TimedOut } else { ApprovalOutcome::Undeliverable };
        Some((question, outcome))
    }

    /// Closes a question whose turn is over. None when it is closed already.
    pub fn withdraw(&mut self, id: &ApprovalId) -> Option<(Question, ApprovalOutcome)> {
        Some((self.close(id, Closed::Withdrawn)?, ApprovalOutcome::Withdrawn))
    }

    fn close(&mut self, id: &ApprovalId, how: Closed) -> Option<Question> {
        let index = self.open.iter().position(|question| question.id == *id)?;
        let question = self.open.remove(index);
        self.remember(&question, how);
        Some(question)
    }

    fn remember(&mut self, question: &Question, how: Closed) {
        if self.closed.len() >= REMEMBERED {
            self.closed.pop_front();
        }
        self.closed.push_back((question.code.clone(), question.person.clone(), how));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::envelope::Conversation;

    fn person(tier: &str, conversation: &str, sender: &str) -> Person {
        Person {
            conversation: Conversation {
                tier: tier.parse().unwrap(),
                channel: "terminal".to_owned(),
                name: conversation.to_owned(),
            },
            sender: sender.to_owned(),
        }
    }

    fn asked(approvals: &mut Approvals, code: &str, now: Instant) -> ApprovalId {
        let question = Question::new(
            person("tasks", "a", "me"),
            "shell".to_owned(),
            [7; 32],
            Code::parse(code).unwrap(),
            now + Duration::from_secs(600),
        );
        let id = question.id.clone();
        approvals.open(question);
        id
    }

    fn say(approvals: &mut Approvals, who: &Person, text: &str, now: Instant) -> Result<bool, Rejection> {
        match approvals.answer(who, &Answer::parse(text).unwrap(), now) {
            Verdict::Decided { question, approved } => {
                assert_eq!(question.fingerprint, [7; 32]);
                Ok(approved)
            }
            Verdict::Rejected { why, .. } => Err(why),
        }
    }

    #[test]
    fn the_right_person_answers_once() {
        let now = Instant::now();
        let me = person("tasks", "a", "me");
        for (text, approved) in [("YES 70KM", true), ("no 7okm", false), ("yEs 7Okm", true)] {
            let mut approvals = Approvals::default();
            asked(&mut approvals, "70KM", now);
            assert_eq!(say(&mut approvals, &me, text, now), Ok(approved), "{text}");
            assert_eq!(say(&mut approvals, &me, text, now), Err(Rejection::Replayed { approved }), "{text}");
        }
    }

    #[test]
    fn nobody_else_does_and_nobody_else_uses_up_attempts() {
        let now = Instant::now();
        let mut approvals = Approvals::default();
        asked(&mut approvals, "70KM", now);
        for other in [person("tasks", "b", "me"), person("tasks", "a", "you"), person("updates", "a", "me")] {
            for _ in 0..10 {
                // The same words for a right and a wrong code.
                for code in ["YES 70KM", "YES 9999"] {
                    assert_eq!(say(&mut approvals, &other, code, now), Err(Rejection::Wrong { left: None }));
                }
            }
            assert!(approvals.open_for(&other, now).is_empty());
        }
        assert_eq!(say(&mut approvals, &person("tasks", "a", "me"), "YES 70KM", now), Ok(true));
    }

    #[test]
    fn five_wrong_codes_deny() {
        let now = Instant::now();
        let me = person("tasks", "a", "me");
        let mut approvals = Approvals::default();
        let id = asked(&mut approvals, "70KM", now);
        for left in [4, 3, 2, 1] {
            assert_eq!(say(&mut approvals, &me, "YES 9999", now), Err(Rejection::Wrong { left: Some(left) }));
        }
        match approvals.answer(&me, &Answer::parse("YES 9999").unwrap(), now) {
            Verdict::Rejected { why: Rejection::Wrong { left: Some(0) }, denied } => {
                assert_eq!(denied.iter().map(|question| &question.id).collect::<Vec<_>>(), [&id]);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(say(&mut approvals, &me, "YES 70KM", now), Err(Rejection::Replayed { approved: false }));
        assert!(approvals.expire(&id).is_none() && approvals.withdraw(&id).is_none());
    }

    #[test]
    fn it_expires_to_the_second_and_stays_closed() {
        let now = Instant::now();
        let me = person("tasks", "a", "me");
        let mut approvals = Approvals::default();
        let id = asked(&mut approvals, "70KM", now);
        let late = now + Duration::from_secs(600);
        assert_eq!(approvals.open_for(&me, late - Duration::from_millis(1)).len(), 1);
        assert!(approvals.open_for(&me, late).is_empty());
        assert_eq!(say(&mut approvals, &me, "YES 70KM", late), Err(Rejection::Expired));
        assert_eq!(approvals.expire(&id).unwrap().1, ApprovalOutcome::Undeliverable);
        assert_eq!(say(&mut approvals, &me, "YES 70KM", late), Err(Rejection::Expired));
        let id = asked(&mut approvals, "71KM", now);
        approvals.shown(&id);
        assert_eq!(approvals.expire(&id).unwrap().1, ApprovalOutcome::TimedOut);
        assert!(!approvals.is_free(&Code::parse("71KM").unwrap()));
    }

    #[test]
    fn withdrawn_is_not_timed_out() {
        let now = Instant::now();
        let mut approvals = Approvals::default();
        for shown in [false, true] {
            let code = if shown { "70KM" } else { "71KM" };
            let id = asked(&mut approvals, code, now);
            if shown {
                approvals.shown(&id);
            }
            assert_eq!(approvals.withdraw(&id).unwrap().1, ApprovalOutcome::Withdrawn);
            let late = say(&mut approvals, &person("tasks", "a", "me"), &format!("YES {code}"), now);
            assert_eq!(late, Err(Rejection::Withdrawn));
            assert!(approvals.expire(&id).is_none());
        }
    }

    proptest! {
        /// Whatever is typed in whatever order, a question is approved only by its own code from its own person.
        #[test]
        fn nothing_but_the_code_approves(tries in proptest::collection::vec((0_u32..4096, any::<bool>(), 0_u8..3), 0..40)) {
            let now = Instant::now();
            let me = person("tasks", "a", "me");
            let mut approvals = Approvals::default();
            asked(&mut approvals, "0042", now);
            let right = Code::parse("0042").unwrap();
            for (bits, yes, who) in tries {
                let Some(code) = Code::from_bits(bits) else { continue };
                let who = person("tasks", if who == 1 { "b" } else { "a" }, if who == 2 { "you" } else { "me" });
                let answer = Answer { yes, code: code.clone() };
                if let Verdict::Decided { approved, .. } = approvals.answer(&who, &answer, now) {
                    prop_assert!(code == right && who == me);
                    prop_assert_eq!(approved, yes);
                }
            }
        }
    }
}
