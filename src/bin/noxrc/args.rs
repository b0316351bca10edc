//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use noxrunner::{Isolation, SandboxSpec};

const EXAMPLES: &str = "\
Examples:
  noxrc doctor                                      what works here
  noxrc serve                                       sandboxes of this machine, for others
  noxrc create my-session --ttl 1800
  noxrc exec my-session python3 --version
  noxrc upload my-session script.py data.txt
  noxrc download my-session --extract ./output
  noxrc --local run --upload src -- make -C src     make a sandbox, use it, delete it
  noxrc exec --detach my-session ./train.sh         start a job, then: noxrc logs -f
  noxrc shell my-session

Data goes to stdout, notices and errors to stderr. Exit codes: 0, done; 1, failed; 2, not
understood; `exec`, `run` and `wait` exit with the command's own code, and with 125 where the
backend or the sandbox failed.";

/// Run commands and move files in NoxRunner sandboxes, on a server or on this machine
#[derive(Parser)]
#[command(name = "noxrc", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    /// The server
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "NOXRUNNER_BASE_URL",
        default_value = "http://127.0.0.1:8080"
    )]
    pub(crate) base_url: String,

    /// Sandboxes on this machine, without a server; they stay until their TTL is over
    #[arg(long, global = true, alias = "local-test")]
    pub(crate) local: bool,

    /// How far sandboxes on this machine are kept apart from it
    #[arg(long, global = true, value_name = "TIER", default_value = "namespaces")]
    pub(crate) isolation: Tier,

    /// How long a call that is no command and no transfer may take
    #[arg(long, global = true, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,

    /// What the server wants as its bearer token
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "NOXRUNNER_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,

    /// Another header of every request; may be given again
    #[arg(long = "header", global = true, value_name = "NAME: VALUE", value_parser = header)]
    pub(crate) headers: Vec<(String, String)>,

    /// Certificates (PEM) to trust for https, instead of the usual ones
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// One JSON value on stdout, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Tell of each request
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    Namespaces,
    Landlock,
    None,
}

impl Args {
    /// An empty one is none.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref().filter(|token| !token.is_empty())
    }
}

impl From<Tier> for Isolation {
    fn from(tier: Tier) -> Isolation {
        match tier {
            Tier::Namespaces => Isolation::Namespaces,
            Tier::Landlock => Isolation::Landlock,
            Tier::None => Isolation::None,
        }
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Ask whether the backend is healthy
    #[command(
        after_help = "Examples:\n  noxrc health\n  noxrc --base-url https://sandboxes.example.com health"
    )]
    Health,
    /// Make a sandbox, or start its time again where it exists
    #[command(
        after_help = "Examples:\n  noxrc create my-session --ttl 1800 --mem 512Mi\n  noxrc create my-session --image python:3.12 --wait"
    )]
    Create(Create),
    /// Run a command in a sandbox, and exit with its code
    Exec(Exec),
    /// Make a sandbox, run a command in it, and delete it
    Run(Run),
    /// Upload files to a sandbox
    Upload(Upload),
    /// Download files of a sandbox
    Download(Download),
    /// Copy a file or a directory: one side is ID:PATH
    #[command(
        after_help = "Examples:\n  noxrc cp data.csv my-session:/workspace/\n  noxrc cp my-session:out ./results"
    )]
    Cp {
        /// What to copy: PATH or ID:PATH
        source: String,
        /// Where to: ID:PATH or PATH
        target: String,
    },
    /// Write a file of a sandbox to stdout
    #[command(
        after_help = "Examples:\n  noxrc cat my-session out.csv > out.csv\n  noxrc cat my-session /tmp/log | tail"
    )]
    Cat {
        /// The sandbox's id
        id: String,
        /// The file there
        path: String,
    },
    /// Start a sandbox's time again
    #[command(after_help = "Examples:\n  noxrc touch my-session")]
    Touch {
        /// The sandbox's id
        id: String,
    },
    /// Delete a sandbox
    #[command(after_help = "Examples:\n  noxrc delete my-session")]
    Delete {
        /// The sandbox's id
        id: String,
    },
    /// List a sandbox's jobs: commands that were started with --detach
    #[command(after_help = "Examples:\n  noxrc jobs my-session")]
    Jobs {
        /// The sandbox's id
        id: String,
    },
    /// Write what a job has written: its stdout to stdout, its stderr to stderr
    Logs(Logs),
    /// Wait until a job has ended, and exit with its code
    Wait(Wait),
    /// End a job with all that it started in its process group
    #[command(after_help = "Examples:\n  noxrc kill my-session j0123456789")]
    Kill(JobArgs),
    /// Type commands for a sandbox
    #[command(
        after_help = "Examples:\n  noxrc shell my-session\n  noxrc shell my-session < commands.txt\n\ncd, export and unset last. Ctrl-C drops the line or ends the command, Ctrl-D leaves."
    )]
    Shell(ShellArgs),
    /// Serve sandboxes of this machine to others, as NoxRunner v1
    Serve(Serve),
    /// Ask a server whether it keeps NoxRunner v1, and say what it can do
    Conformance(ConformanceArgs),
    /// Say what works here, and what to do about what does not
    #[command(
        after_help = "Examples:\n  noxrc doctor\n  noxrc --local doctor       only the sandboxes of this machine"
    )]
    Doctor,
    /// Print what a shell needs to complete this command
    #[command(
        after_help = "Examples:\n  source <(noxrc completions bash)\n  noxrc completions fish > ~/.config/fish/completions/noxrc.fish"
    )]
    Completions {
        /// For which one
        shell: Shell,
    },
}

#[derive(clap::Args)]
pub(crate) struct Spec {
    /// How long it lives without being used or touched
    #[arg(long, value_name = "SECONDS", default_value = "900", value_parser = seconds)]
    ttl: Duration,
    /// The container image; means nothing to sandboxes of this machine
    #[arg(long)]
    image: Option<String>,
    /// CPUs: 1, 500m
    #[arg(long)]
    cpu: Option<String>,
    /// Memory: 512Mi, 1G
    #[arg(long)]
    mem: Option<String>,
    /// Files: 1Gi
    #[arg(long)]
    storage: Option<String>,
}

impl Spec {
    pub(crate) fn to_spec(&self) -> SandboxSpec {
        let mut spec = SandboxSpec::new().ttl(self.ttl);
        if let Some(image) = &self.image {
            spec = spec.image(image);
        }
        if let Some(cpu) = &self.cpu {
            spec = spec.cpu(cpu);
        }
        if let Some(mem) = &self.mem {
            spec = spec.memory(mem);
        }
        if let Some(storage) = &self.storage {
            spec = spec.storage(storage);
        }
        spec
    }
}

#[derive(clap::Args)]
pub(crate) struct Create {
    /// The sandbox's id
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) spec: Spec,
    /// Wait until commands run in it
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) wait_timeout: Duration,
}

/// How a command is run.
#[derive(clap::Args)]
pub(crate) struct How {
    /// Where it runs
    #[arg(long, value_name = "DIR", default_value = "/workspace")]
    pub(crate) workdir: String,
    /// A variable for it; may be given again
    #[arg(long = "env", value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// How long it may run
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout_seconds: Duration,
    /// Exit with 0, whatever its code is
    #[arg(long)]
    pub(crate) ignore_exit_code: bool,
    /// Let it run as a job without a time limit, and print the ids of the sandbox and of the job
    #[arg(short, long, conflicts_with_all = ["timeout_seconds", "ignore_exit_code"])]
    pub(crate) detach: bool,
}

#[derive(clap::Args)]
#[command(
    after_help = "Options stand before the ID: all that follows it is the command.\n\nExamples:\n  noxrc exec my-session ls -la\n  noxrc exec --env A=1 --timeout-seconds 300 my-session sh -c 'make && ./run $A'\n  noxrc exec --detach my-session ./train.sh"
)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) how: How,
    /// The sandbox's id
    pub(crate) id: String,
    /// The program and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "CMD"
    )]
    pub(crate) cmd: Vec<String>,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  noxrc --local run -- python3 -c 'print(6 * 7)'\n  noxrc --local run --upload src --download out -- make -C src\n  read -r sandbox job < <(noxrc run --detach --ttl 3600 --upload train.py -- python3 train.py)\n\nThe sandbox is deleted whatever happens, also by Ctrl-C. With --detach it lives\nuntil its TTL is over, which `logs -f` and `wait` start again, or until `noxrc delete`."
)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) spec: Spec,
    #[command(flatten)]
    pub(crate) how: How,
    /// A file or directory for its /workspace; may be given again
    #[arg(long, value_name = "PATH")]
    pub(crate) upload: Vec<PathBuf>,
    /// A file or directory there to download to the current directory; may be given again
    #[arg(long, value_name = "PATH", conflicts_with = "detach")]
    pub(crate) download: Vec<String>,
    /// The program and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "CMD"
    )]
    pub(crate) cmd: Vec<String>,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  noxrc upload my-session a.txt b.txt\n  noxrc upload my-session --dir ./project --dest /workspace/project"
)]
pub(crate) struct Upload {
    /// The sandbox's id
    pub(crate) id: String,
    /// What to upload, unless there is --dir
    pub(crate) files: Vec<PathBuf>,
    /// All below this directory
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Where to
    #[arg(long, value_name = "DIR", default_value = "/workspace")]
    pub(crate) dest: String,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  noxrc download my-session --extract ./output\n  noxrc download my-session --src /workspace/out --output out.tar.gz"
)]
pub(crate) struct Download {
    /// The sandbox's id
    pub(crate) id: String,
    /// What to download
    #[arg(long, value_name = "PATH", default_value = "/workspace")]
    pub(crate) src: String,
    /// The archive as it comes, to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The directory for the files; by default the current one. Without effect beside --output
    #[arg(long, value_name = "DIR")]
    pub(crate) extract: Option<PathBuf>,
}

/// Which job.
#[derive(clap::Args)]
pub(crate) struct JobArgs {
    /// The sandbox's id
    pub(crate) id: String,
    /// The job's id
    pub(crate) job: String,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  noxrc logs my-session j0123456789 > so-far.txt\n  noxrc logs -f my-session j0123456789"
)]
pub(crate) struct Logs {
    /// Go on until the job ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) of: JobArgs,
}

#[derive(clap::Args)]
#[command(
    after_help = "Exits with 124 if the job still runs when the time is over.\n\nExamples:\n  noxrc wait my-session j0123456789\n  noxrc wait --timeout-seconds 600 my-session j0123456789"
)]
pub(crate) struct Wait {
    /// How long to wait at most; by default as long as it takes
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout_seconds: Option<Duration>,
    #[command(flatten)]
    pub(crate) of: JobArgs,
}

#[derive(clap::Args)]
#[command(
    after_help = "Exits with 1 if a MUST has failed, or nothing answers. The sandboxes it makes are deleted, also by\nCtrl-C.\n\nExamples:\n  noxrc --base-url https://sandboxes.example.com conformance\n  noxrc --json conformance | jq '.checks[] | select(.outcome == \"failed\")'\n  noxrc conformance --only exec-timeout --only exec-timeout-children"
)]
pub(crate) struct ConformanceArgs {
    /// This check alone; may be given again
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct ShellArgs {
    /// The sandbox's id
    pub(crate) id: String,
    /// Where it starts
    #[arg(long, value_name = "DIR", default_value = "/workspace")]
    pub(crate) workdir: String,
    /// How long each command may run
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout_seconds: Duration,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  noxrc serve\n  NOXRUNNER_TOKEN=s3cret noxrc serve --listen 0.0.0.0:8080\n  noxrc serve --unix /run/user/1000/noxrunner.sock\n  noxrc serve --gateway https://sandboxes.example.com\n\nSandboxes end with the server. It is stopped by Ctrl-C or SIGTERM; running commands have 10 s."
)]
pub(crate) struct Serve {
    /// The address; may be given again. 127.0.0.1:8080, unless there is --unix
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Vec<SocketAddr>,
    /// A socket that only this user can use
    #[arg(long, value_name = "PATH")]
    pub(crate) unix: Option<PathBuf>,
    /// The token is in this file
    #[arg(long, value_name = "FILE", conflicts_with = "no_auth")]
    pub(crate) token_file: Option<PathBuf>,
    /// Everybody who reaches it may run commands; loopback and --unix only
    #[arg(long)]
    pub(crate) no_auth: bool,
    /// With --no-auth, at any address
    #[arg(long, requires = "no_auth")]
    pub(crate) force: bool,
    /// In front of another server, to which --token and --header go
    #[arg(long, value_name = "URL")]
    pub(crate) gateway: Option<String>,
    /// How many calls may run at a time
    #[arg(long, value_name = "COUNT", default_value = "128")]
    pub(crate) max_calls: usize,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(0) => Err("it must be more than 0".to_owned()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => Err("it must be a whole number of seconds".to_owned()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("a header is written as `Name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[test]
fn the_arguments_are_well_defined() {
    use clap::CommandFactory;
    Args::command().debug_assert();
}
