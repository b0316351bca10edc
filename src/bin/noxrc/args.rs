//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap_complete::Shell;
use noxrunner::SandboxSpec;

use crate::backend_args::BackendArgs;
use crate::parse::{bytes, listen_address, seconds};

const EXAMPLES: &str = "\
Examples:
  noxrc doctor                                      check this machine's setup
  noxrc serve                                       serve local sandboxes over HTTP
  noxrc create my-session --ttl 1800
  noxrc exec my-session python3 --version
  noxrc upload my-session script.py data.txt
  noxrc download my-session --extract ./output
  noxrc --local run --upload src -- make -C src     create a sandbox, run, delete it
  noxrc --docker run --image alpine -- echo hi      the same in a container of Docker or Podman
  noxrc exec --detach my-session ./train.sh         start a job (see noxrc logs -f)
  noxrc shell my-session

Data goes to stdout, notices and errors to stderr. Exit codes: 0 success, 1 failure, 2 invalid usage.
`exec`, `run` and `wait` exit with the command's own code, or with 125 if the backend or the sandbox
failed or the output cannot be written.";

/// Run commands and transfer files in local or remote NoxRunner sandboxes
#[derive(Parser)]
#[command(name = "noxrc", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,

    /// Print one JSON value on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Log each request [env: NOXRUNNER_VERBOSE=1]
    #[arg(
        short,
        long,
        global = true,
        env = "NOXRUNNER_VERBOSE",
        hide_env = true,
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    pub(crate) verbose: bool,

    #[command(subcommand)]
    pub(crate) subcommand: Option<Subcommand>,
}

#[derive(clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Check the backend's health
    #[command(
        after_help = "Examples:\n  noxrc health\n  noxrc --base-url https://sandboxes.example.com health"
    )]
    Health,
    /// Create a sandbox, or renew its TTL if it already exists
    #[command(
        after_help = "Examples:\n  noxrc create my-session --ttl 1800 --mem 512Mi\n  noxrc create my-session --image python:3.12 --wait"
    )]
    Create(CreateArgs),
    /// Run a command in a sandbox and exit with its code
    Exec(ExecArgs),
    /// Create a sandbox, run a command in it, and delete it
    Run(RunArgs),
    /// Upload files to a sandbox
    Upload(UploadArgs),
    /// Download files from a sandbox
    Download(DownloadArgs),
    /// Copy a file or directory to or from a sandbox
    #[command(
        after_help = "Examples:\n  noxrc cp data.csv my-session:/workspace/\n  noxrc cp my-session:out ./results"
    )]
    Cp {
        /// Source: PATH or ID:PATH
        source: String,
        /// Target: ID:PATH or PATH
        target: String,
        #[command(flatten)]
        pack: PackArgs,
    },
    /// Print a file of a sandbox
    #[command(
        after_help = "Examples:\n  noxrc cat my-session out.csv > out.csv\n  noxrc cat my-session /tmp/log | tail"
    )]
    Cat {
        /// Session id of the sandbox
        id: String,
        /// Path of the file
        path: String,
    },
    /// Reset a sandbox's TTL
    #[command(after_help = "Examples:\n  noxrc touch my-session")]
    Touch {
        /// Session id of the sandbox
        id: String,
    },
    /// Delete a sandbox
    #[command(after_help = "Examples:\n  noxrc delete my-session")]
    Delete {
        /// Session id of the sandbox
        id: String,
    },
    /// List a sandbox's jobs (commands started with --detach)
    #[command(after_help = "Examples:\n  noxrc jobs my-session")]
    Jobs {
        /// Session id of the sandbox
        id: String,
    },
    /// Print a job's output
    Logs(LogsArgs),
    /// Wait for a job and exit with its code
    Wait(WaitArgs),
    /// Terminate a job and its process group
    Kill(KillArgs),
    /// Open an interactive shell in a sandbox
    #[command(
        after_help = "Examples:\n  noxrc shell my-session\n  noxrc shell my-session < commands.txt\n\ncd, export and unset apply to later commands. Ctrl-C discards the line or cancels the command, Ctrl-D exits.\nExits with the code of the last command, or with that of `exit CODE`."
    )]
    Shell(ShellArgs),
    /// Serve local sandboxes or containers over the NoxRunner v1 API
    Serve(ServeArgs),
    /// Serve one sandbox inside a container, as its first process
    #[cfg(target_os = "linux")]
    Agent(AgentArgs),
    /// Check a server against the NoxRunner v1 protocol
    Conformance(ConformanceArgs),
    /// Prepare a Kubernetes cluster
    #[command(subcommand)]
    Kubernetes(KubernetesSubcommand),
    /// Check this machine's setup and suggest fixes
    #[command(
        after_help = "Examples:\n  noxrc doctor\n  noxrc --local doctor       check only local sandboxes"
    )]
    Doctor,
    /// Print a shell completion script
    #[command(
        after_help = "Examples:\n  source <(noxrc completions bash)\n  noxrc completions fish > ~/.config/fish/completions/noxrc.fish"
    )]
    Completions {
        /// Name of the shell
        shell: Shell,
    },
}

#[derive(clap::Args)]
pub(crate) struct SpecArgs {
    /// TTL of the sandbox, which touch resets
    #[arg(long, value_name = "SECONDS", default_value = "900", value_parser = seconds)]
    ttl: Duration,
    /// Container image (ignored by local sandboxes)
    #[arg(long)]
    image: Option<String>,
    /// CPU limit, such as 1 or 500m
    #[arg(long)]
    cpu: Option<String>,
    /// Memory limit, such as 512Mi or 1G
    #[arg(long)]
    mem: Option<String>,
    /// Storage limit, such as 1Gi
    #[arg(long)]
    storage: Option<String>,
}

impl SpecArgs {
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
pub(crate) struct CreateArgs {
    /// Session id of the sandbox
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// Wait until the sandbox is ready
    #[arg(long)]
    pub(crate) wait: bool,
    /// Timeout of --wait
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) wait_timeout: Duration,
}

/// Options of a command.
#[derive(clap::Args)]
pub(crate) struct ExecOptions {
    /// Working directory
    #[arg(long, value_name = "DIR", default_value = "/workspace")]
    pub(crate) workdir: String,
    /// Set an environment variable (repeatable)
    #[arg(long = "env", value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Timeout of the command
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout_seconds: Duration,
    /// Pass stdin to the command. A server gets all of it, at most 64 MiB, before the command starts
    #[arg(short = 'i', long, conflicts_with = "detach")]
    pub(crate) stdin: bool,
    /// Exit with 0 whatever the command's exit code is
    #[arg(long)]
    pub(crate) ignore_exit_code: bool,
    /// Start a job without a timeout and print the ids of the sandbox and the job
    #[arg(short, long, conflicts_with_all = ["timeout_seconds", "ignore_exit_code"])]
    pub(crate) detach: bool,
}

#[derive(clap::Args)]
#[command(
    after_help = "Options must come before ID. Everything after ID is the command.\n\nExamples:\n  noxrc exec my-session ls -la\n  noxrc exec --env A=1 --timeout-seconds 300 my-session sh -c 'make && ./run $A'\n  noxrc exec -i my-session sort < data.txt\n  noxrc exec --detach my-session ./train.sh"
)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) options: ExecOptions,
    /// Session id of the sandbox
    pub(crate) id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub(crate) cmd: Vec<String>,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  noxrc --local run -- python3 -c 'print(6 * 7)'\n  noxrc --local run --upload src --download out -- make -C src\n  noxrc --local run -i -- python3 < script.py\n  read -r sandbox job < <(noxrc run --detach --ttl 3600 --upload train.py -- python3 train.py)\n\nThe sandbox is deleted at the end, also on Ctrl-C, SIGTERM and SIGHUP. With --detach it lives until its TTL\nexpires, which `logs -f` and `wait` renew, or until `noxrc delete`."
)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    #[command(flatten)]
    pub(crate) options: ExecOptions,
    /// Upload a file or directory to /workspace first (repeatable)
    #[arg(long, value_name = "PATH")]
    pub(crate) upload: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) pack: PackArgs,
    /// Download a file or directory to the current directory afterwards (repeatable)
    #[arg(long, value_name = "PATH", conflicts_with = "detach")]
    pub(crate) download: Vec<String>,
    /// Program and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub(crate) cmd: Vec<String>,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  noxrc upload my-session a.txt b.txt\n  noxrc upload my-session --dir ./project --dest /workspace/project"
)]
pub(crate) struct UploadArgs {
    /// Session id of the sandbox
    pub(crate) id: String,
    /// Files to upload
    #[arg(conflicts_with = "dir")]
    pub(crate) files: Vec<PathBuf>,
    /// Upload everything in this directory
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Destination directory in the sandbox
    #[arg(long, value_name = "DIR", default_value = "/workspace")]
    pub(crate) dest: String,
    #[command(flatten)]
    pub(crate) pack: PackArgs,
}

/// Options for uploading a directory.
#[derive(clap::Args)]
pub(crate) struct PackArgs {
    /// Leave out what matches, as in .gitignore: *.o, /target, .git/ (repeatable)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// Treatment of symbolic links in a directory
    #[arg(long, value_enum, default_value_t = LinksArg::Keep)]
    pub(crate) links: LinksArg,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum LinksArg {
    /// Upload them as links
    Keep,
    /// Upload what they lead to
    Follow,
    /// Leave them out
    Skip,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  noxrc download my-session --extract ./output\n  noxrc download my-session --src /workspace/out --output out.tar.gz"
)]
pub(crate) struct DownloadArgs {
    /// Session id of the sandbox
    pub(crate) id: String,
    /// Directory to download
    #[arg(long, value_name = "PATH", default_value = "/workspace")]
    pub(crate) src: String,
    /// Write the archive to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Extract to this directory (default: the current one)
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    pub(crate) extract: Option<PathBuf>,
}

/// Identifies a job.
#[derive(clap::Args)]
pub(crate) struct JobArgs {
    /// Session id of the sandbox
    pub(crate) id: String,
    /// Id of the job
    pub(crate) job: String,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  noxrc logs my-session j0123456789 > so-far.txt\n  noxrc logs -f my-session j0123456789"
)]
pub(crate) struct LogsArgs {
    /// Follow the output until the job finishes
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(clap::Args)]
#[command(
    after_help = "Exits with 124 if the job is still running after the timeout.\n\nExamples:\n  noxrc wait my-session j0123456789\n  noxrc wait --timeout-seconds 600 my-session j0123456789"
)]
pub(crate) struct WaitArgs {
    /// Maximum time to wait (default: unlimited)
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout_seconds: Option<Duration>,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(clap::Args)]
#[command(
    after_help = "Exits with 1 if a MUST check fails or the server does not respond. The sandboxes that it creates are\ndeleted, also on Ctrl-C.\n\nExamples:\n  noxrc --base-url https://sandboxes.example.com conformance\n  noxrc --json conformance | jq '.checks[] | select(.outcome == \"failed\")'\n  noxrc conformance --only exec-timeout --only exec-timeout-children"
)]
pub(crate) struct ConformanceArgs {
    /// Run only this check (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
}

#[derive(clap::Args)]
#[command(
    after_help = "Sends SIGTERM, and SIGKILL if the job has not finished after 10 s.\n\nExamples:\n  noxrc kill my-session j0123456789\n  noxrc kill --signal INT my-session j0123456789"
)]
pub(crate) struct KillArgs {
    /// Send only this signal, such as INT or KILL
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) signal: Option<String>,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(clap::Args)]
pub(crate) struct ShellArgs {
    /// Session id of the sandbox
    pub(crate) id: String,
    /// Initial working directory
    #[arg(long, value_name = "DIR", default_value = "/workspace")]
    pub(crate) workdir: String,
    /// Timeout of each command
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout_seconds: Duration,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  noxrc serve\n  NOXRUNNER_TOKEN=s3cret noxrc serve --listen 0.0.0.0:8080\n  noxrc serve --unix /run/user/1000/noxrunner.sock\n  noxrc serve --gateway https://sandboxes.example.com\n  noxrc --docker serve --image python:3.12-slim\n  noxrc --base-url unix:///run/user/1000/noxrunner.sock health\n\nLocal sandboxes end with the server, containers with their TTL. Ctrl-C or SIGTERM stops it; running commands get 10 s to finish."
)]
pub(crate) struct ServeArgs {
    /// Address to listen on, such as 127.0.0.1:8080, localhost:8080, or :8080 for all IPv4 addresses
    /// (repeatable; default: 127.0.0.1:8080, unless --unix is set)
    #[arg(long, value_name = "HOST:PORT", value_parser = listen_address)]
    pub(crate) listen: Vec<SocketAddr>,
    /// Unix socket to listen on, accessible only to this user
    #[arg(long, value_name = "PATH")]
    pub(crate) unix: Option<PathBuf>,
    /// Disable authentication (only for loopback addresses and --unix)
    #[arg(long)]
    pub(crate) no_auth: bool,
    /// Allow --no-auth on any address
    #[arg(long, requires = "no_auth")]
    pub(crate) force: bool,
    /// Forward requests to another server; --token and --header apply to that one
    #[arg(long, value_name = "URL")]
    pub(crate) gateway: Option<String>,
    /// Image of containers whose client names none
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Allow clients to use this image, and no others than the allowed ones (repeatable; default: all
    /// images)
    #[arg(long, value_name = "IMAGE")]
    pub(crate) allow_image: Vec<String>,
    /// Enforce memory and CPU limits by the cgroup v2 that is delegated to this process
    #[arg(long, conflicts_with = "gateway")]
    pub(crate) delegated_cgroup: bool,
    /// Maximum number of concurrent calls
    #[arg(long, value_name = "COUNT", default_value = "128")]
    pub(crate) max_calls: usize,
    /// Memory for connections, bodies, output and archives, such as 64Mi
    #[arg(long, value_name = "BYTES", default_value = "256Mi", value_parser = bytes)]
    pub(crate) memory_budget: u64,
    #[command(flatten)]
    pub(crate) maxima: MaximaArgs,
}

#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "The backends for Docker, Podman and Kubernetes start this in the containers that they create. It exits\nwhen the TTL expires, which create and touch restart, when the sandbox is deleted, and on SIGTERM.\nCommands run as its user, with its environment, and in the container's /workspace.\n\nExamples:\n  noxrc agent --session-id demo --unix /run/noxrunner/agent.sock\n  noxrc agent --session-id demo --listen 0.0.0.0:8080 --token-sha256 \"$(printf %s \"$TOKEN\" | sha256sum | cut -d' ' -f1)\"\n  noxrc agent install /shared"
)]
#[cfg(target_os = "linux")]
pub(crate) struct AgentArgs {
    /// Session id of the sandbox
    #[arg(long, value_name = "ID", required = true, allow_hyphen_values = true)]
    pub(crate) session_id: Option<String>,
    /// Address to listen on, such as 0.0.0.0:8080, which needs --token-sha256 (repeatable)
    #[arg(long, value_name = "HOST:PORT", value_parser = listen_address)]
    pub(crate) listen: Vec<SocketAddr>,
    /// Unix socket to listen on. Everyone who can search its directory can connect
    #[arg(long, value_name = "PATH")]
    pub(crate) unix: Option<PathBuf>,
    /// SHA-256 of the token that requests need, in hexadecimal digits
    #[arg(long, value_name = "HEX")]
    pub(crate) token_sha256: Option<String>,
    /// TTL of the sandbox
    #[arg(long, value_name = "SECONDS", default_value = "900", value_parser = seconds)]
    pub(crate) ttl: Duration,
    #[command(subcommand)]
    pub(crate) subcommand: Option<AgentSubcommand>,
}

#[derive(clap::Subcommand)]
#[cfg(target_os = "linux")]
pub(crate) enum AgentSubcommand {
    /// Copy this program to DIR/noxrc, for a container that shares the directory
    Install {
        /// Existing directory
        dir: PathBuf,
    },
}

#[derive(clap::Subcommand)]
pub(crate) enum KubernetesSubcommand {
    /// Print the objects that sandboxes and a server for them need, as YAML for kubectl
    #[command(
        after_help = "Examples:\n  noxrc kubernetes manifest --agent-image registry.example.com/noxrunner-agent:1 --image python:3.13-slim \\\n    | kubectl apply -f -\n  noxrc kubernetes manifest --namespace team-a --agent-image registry.example.com/noxrunner-agent:1 --replicas 3"
    )]
    Manifest(ManifestArgs),
}

#[derive(clap::Args)]
pub(crate) struct ManifestArgs {
    /// Image of sandboxes whose clients ask for none
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Number of servers
    #[arg(long, value_name = "COUNT", default_value = "2")]
    pub(crate) replicas: u16,
    /// Maximum number of pods in the namespace, servers included
    #[arg(long, value_name = "COUNT", default_value = "100")]
    pub(crate) max_pods: u32,
}

/// Maxima for the sandboxes of clients. More is refused, and defaults are capped.
#[derive(clap::Args)]
pub(crate) struct MaximaArgs {
    /// Maximum TTL of a sandbox
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) max_ttl: Option<Duration>,
    /// Maximum memory limit of a sandbox, such as 2Gi
    #[arg(long, value_name = "QUANTITY")]
    pub(crate) max_mem: Option<String>,
    /// Maximum storage limit of a sandbox, such as 2Gi
    #[arg(long, value_name = "QUANTITY")]
    pub(crate) max_storage: Option<String>,
    /// Maximum CPU limit of a sandbox, such as 2 or 500m
    #[arg(long, value_name = "QUANTITY")]
    pub(crate) max_cpu: Option<String>,
    /// Maximum number of sandboxes
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_sandboxes: Option<usize>,
}

#[test]
fn command_line_is_valid() {
    use clap::CommandFactory;
    Args::command().debug_assert();
}
