//! The terminal client: a conversation with one tier over the control socket.
//!
//! Works with and without a terminal: piped, every line is a message and the exit status says whether all turns went
//! well. It runs as the operator, on the VM, and knows nothing but the gRPC contract. What it prints was made harmless
//! by the service, and is again here: the two may be of different versions.

use std::collections::{BTreeSet, VecDeque};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use assistant_proto::channel::channel_service_client::ChannelServiceClient;
use assistant_proto::channel::send_message_response::Event;
use assistant_proto::channel::{ListChannelsRequest, SendMessageRequest};
use service_kit::text::harmless;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::approvals::Answer;
use crate::route::STOP;

mod screen;

use screen::Screen;

/// Left by a second Ctrl-C, as shells count it.
const EXIT_INTERRUPTED: u8 = 130;

/// `chat`
#[derive(Debug, clap::Args)]
pub struct ChatArguments {
    /// The bridge's control socket.
    #[arg(long, default_value = "/run/assistant/channel-bridge.sock")]
    socket: PathBuf,
    /// The conversation to continue: letters, digits, '.', '_' and '-'.
    #[arg(long, default_value = "")]
    conversation: String,
    /// Sends one message, shows the answer and leaves.
    #[arg(long, value_name = "TEXT")]
    once: Option<String>,
    /// The tier to talk to.
    tier: String,
}

type Client = ChannelServiceClient<Channel>;

/// How a turn or the whole chat came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Went {
    Well,
    Wrong,
    /// The person pressed Ctrl-C again.
    Away,
}

/// Runs the client: status 0 if every turn went well, 1 if one did not or nobody could be reached, 130 when interrupted.
#[must_use]
pub fn main(arguments: &ChatArguments) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("cannot start: {error}")),
    };
    let outcome = runtime.block_on(chat(arguments));
    // A read of standard input may still be under way and cannot be called back.
    runtime.shutdown_background();
    match outcome {
        Ok(Went::Well) => ExitCode::SUCCESS,
        Ok(Went::Wrong) => ExitCode::FAILURE,
        Ok(Went::Away) => ExitCode::from(EXIT_INTERRUPTED),
        Err(error) => complain(&format!("{error:#}")),
    }
}

fn complain(problem: &str) -> ExitCode {
    // Standard error is the last resort; where it is gone too, the status says enough.
    if writeln!(std::io::stderr(), "error: {problem}").is_err() {
        return ExitCode::FAILURE;
    }
    ExitCode::FAILURE
}

async fn chat(arguments: &ChatArguments) -> anyhow::Result<Went> {
    let mut client = connect(arguments).await?;
    let terminal = std::io::stdin().is_terminal();
    let shown = std::io::stdout().is_terminal();
    let columns = shown.then_some(screen::terminal_columns as fn() -> Option<usize>);
    let mut chat = Chat {
        screen: Screen::new(std::io::stdout(), shown && !no_colour(), columns),
        // One message needs no standard input, except a person's to answer a question.
        lines: (arguments.once.is_none() || terminal).then(|| BufReader::new(tokio::io::stdin()).lines()),
        waiting: VecDeque::new(),
        client: client.clone(),
        tier: arguments.tier.clone(),
        conversation: arguments.conversation.clone(),
        turns: 0,
    };
    if let Some(text) = &arguments.once {
        return chat.turn(text).await;
    }
    if terminal {
        chat.greet(&mut client, true).await?;
    }
    let went = chat.converse(terminal).await?;
    if !terminal && chat.turns == 0 {
        // Nobody has said yet whether there is such a tier.
        chat.greet(&mut client, false).await?;
        chat.screen.note("There was no message on standard input.")?;
    }
    Ok(went)
}

/// <https://no-color.org>: set and not empty.
#[allow(
    clippy::disallowed_methods,
    reason = "a convention of terminals, read by the client only; it configures nothing"
)]
fn no_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

async fn connect(arguments: &ChatArguments) -> anyhow::Result<Client> {
    let socket = arguments.socket.display();
    let endpoint = Endpoint::from_shared(format!("unix://{socket}"))?;
    let channel = endpoint.connect().await.map_err(|_| match std::fs::metadata(&arguments.socket) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => anyhow::anyhow!(
            "{socket} is not open to you; it is to the user who ran deploy/up.sh and to the group assistant"
        ),
        Err(_) => anyhow::anyhow!("{socket} is not there: start the stack with deploy/up.sh"),
        Ok(_) => anyhow::anyhow!("nobody serves {socket}, or it is not open to you: is the stack up (deploy/up.sh)?"),
    })?;
    Ok(ChannelServiceClient::new(channel))
}

struct Chat<W> {
    screen: Screen<W>,
    lines: Option<Lines<BufReader<Stdin>>>,
    /// Lines that came while a turn was running.
    waiting: VecDeque<String>,
    client: Client,
    tier: String,
    conversation: String,
    /// Messages sent that were no answers.
    turns: u64,
}

impl<W: Write> Chat<W> {
    /// Says whom one talks to; to a script only when there is no such tier.
    async fn greet(&mut self, client: &mut Client, terminal: bool) -> anyhow::Result<()> {
        let channels = client.list_channels(ListChannelsRequest {}).await.map_err(|status| refusal(&status))?;
        let channels = channels.into_inner().channels;
        match channels.iter().find(|channel| channel.tier == self.tier) {
            Some(_) if !terminal => {}
            Some(channel) if channel.ready => {
                self.screen.note("Ctrl-D leaves, Ctrl-C stops an answer.")?;
            }
            Some(channel) => {
                self.screen.note(&format!("not ready yet: {}", harmless(&channel.problem, 500)))?;
            }
            None => {
                // A tier has as many channels as it can be talked to through.
                let known: BTreeSet<&str> = channels.iter().map(|channel| channel.tier.as_str()).collect();
                let known: Vec<&str> = known.into_iter().collect();
                anyhow::bail!("there is no tier of that name; there are: {}", known.join(", "));
            }
        }
        Ok(())
    }

    async fn converse(&mut self, prompt: bool) -> anyhow::Result<Went> {
        let mut went = Went::Well;
        let mut leaving = false;
        loop {
            let line = match self.waiting.pop_front() {
                Some(line) => line,
                None => {
                    if prompt {
                        self.screen.prompt(&self.tier)?;
                    }
                    let Some(lines) = &mut self.lines else { return Ok(went) };
                    tokio::select! {
                        line = lines.next_line() => match line? {
                            Some(line) => line,
                            None => {
                                if prompt {
                                    self.screen.line()?;
                                }
                                return Ok(went);
                            }
                        },
                        interrupted = tokio::signal::ctrl_c() => {
                            interrupted?;
                            if leaving {
                                return Ok(Went::Away);
                            }
                            leaving = true;
                            self.screen.line()?;
                            self.screen.note("Ctrl-D, or Ctrl-C again, leaves.")?;
                            continue;
                        }
                    }
                }
            };
            leaving = false;
            if line.trim().is_empty() {
                continue;
            }
            match self.turn(&line).await? {
                Went::Well => {}
                Went::Wrong => went = Went::Wrong,
                Went::Away => return Ok(Went::Away),
            }
        }
    }

    /// Sends a message and shows what comes of it, while answers to questions may be typed.
    async fn turn(&mut self, text: &str) -> anyhow::Result<Went> {
        self.turns = self.turns.saturating_add(1);
        let mut stream = match self.send(text).await {
            Ok(stream) => stream,
            Err(status) => {
                self.screen.failed(&explain(&status), "")?;
                return Ok(Went::Wrong);
            }
        };
        let mut stopping = false;
        loop {
            tokio::select! {
                event = stream.message() => match event {
                    Ok(Some(response)) => {
                        if let Some(went) = self.show(response.event)? {
                            return Ok(went);
                        }
                    }
                    Ok(None) => {
                        self.screen.broke("the bridge ended the stream without a result", "")?;
                        return Ok(Went::Wrong);
                    }
                    Err(status) => {
                        self.screen.broke(&explain(&status), "")?;
                        return Ok(Went::Wrong);
                    }
                },
                // Cancel-safe: a half-read line stays in the reader.
                line = next_line(&mut self.lines) => match line? {
                    Some(line) if Answer::parse(line.trim()).is_some() => self.aside(line.trim()).await?,
                    Some(line) if line.trim().is_empty() => self.screen.remind()?,
                    Some(line) => {
                        self.waiting.push_back(line);
                        self.screen.remind()?;
                    }
                    None => self.lines = None,
                },
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    if stopping {
                        return Ok(Went::Away);
                    }
                    stopping = true;
                    self.screen.line()?;
                    self.screen.note("Stopping; Ctrl-C again leaves.")?;
                    self.aside(STOP).await?;
                }
            }
        }
    }

    /// Sends what is no turn of its own: an answer to a question, or a stop. What it did also shows in the turn's stream,
    /// so only a refusal is shown here.
    async fn aside(&mut self, text: &str) -> anyhow::Result<()> {
        let mut stream = match self.send(text).await {
            Ok(stream) => stream,
            Err(status) => return self.aside_failed(&explain(&status), ""),
        };
        loop {
            match stream.message().await {
                Ok(Some(response)) => match response.event {
                    Some(Event::Failed(failed)) => return self.aside_failed(&failed.reason, &failed.fix),
                    Some(Event::Ended(_)) => return Ok(()),
                    _ => {}
                },
                Ok(None) => return Ok(()),
                Err(status) => return self.aside_failed(&explain(&status), ""),
            }
        }
    }

    /// What waits for an answer waits still.
    fn aside_failed(&mut self, reason: &str, fix: &str) -> anyhow::Result<()> {
        self.screen.failed(reason, fix)?;
        self.screen.remind()?;
        Ok(())
    }

    async fn send(&mut self, text: &str) -> Result<Streaming<assistant_proto::channel::SendMessageResponse>, Status> {
        let request = SendMessageRequest {
            tier: self.tier.clone(),
            text: text.to_owned(),
            conversation: self.conversation.clone(),
            idempotency_key: String::new(),
        };
        self.client.send_message(request).await.map(tonic::Response::into_inner)
    }

    fn show(&mut self, event: Option<Event>) -> std::io::Result<Option<Went>> {
        match event {
            Some(Event::Accepted(_)) => self.screen.begin(),
            Some(Event::Queued(_)) => self.screen.note("Waiting: the tier is busy with another message.")?,
            Some(Event::Text(text)) => self.screen.text(&text.chunk)?,
            Some(Event::ToolCall(call)) => self.screen.tool(&call.title, &call.status)?,
            Some(Event::ApprovalRequested(ask)) => {
                self.screen.ask(&ask.action, &ask.code, ask.expires_in_seconds)?;
            }
            Some(Event::ApprovalDecided(decided)) => self.screen.decided(&decided.code, &decided.outcome)?,
            Some(Event::Ended(ended)) => {
                self.screen.ended(&ended.reply, &ended.stop_reason, &ended.trace_id)?;
                return Ok(Some(Went::Well));
            }
            Some(Event::Failed(failed)) => {
                self.screen.broke(&failed.reason, &failed.fix)?;
                self.screen.trace(&failed.trace_id)?;
                return Ok(Some(Went::Wrong));
            }
            // From a newer service; the last event of a turn is always one of those above.
            None => {}
        }
        Ok(None)
    }
}

/// The next line, or never where there is no input.
async fn next_line(lines: &mut Option<Lines<BufReader<Stdin>>>) -> std::io::Result<Option<String>> {
    match lines {
        Some(lines) => lines.next_line().await,
        None => std::future::pending().await,
    }
}

fn refusal(status: &Status) -> anyhow::Error {
    anyhow::anyhow!("{}", explain(status))
}

fn explain(status: &Status) -> String {
    match status.code() {
        Code::Unavailable if status.message().is_empty() || status.message().contains("transport") => {
            "the bridge does not answer; look at the container assistant-channel-bridge".to_owned()
        }
        _ => harmless(status.message(), 2000),
    }
}
