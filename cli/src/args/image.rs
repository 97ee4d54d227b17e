//! What the user typed after `labshift image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Server, Sources};

/// Image commands.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Build an image from a recipe and publish it in a store.
    Build(ImageBuild),
    /// Choose a recipe's packages and write the exact versions to a lock file.
    Lock(ImageLock),
    /// List the images of a store.
    List {
        /// Image store.
        #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
        store: PathBuf,
    },
    /// Show what an image holds and where its megabytes are; verifies every file of it.
    Inspect(ImageInspect),
    /// Say why a file or a package is in an image, up to the line of the recipe.
    Why {
        /// Image name, NAME@CHANNEL or NAME@GENERATION.
        image: String,
        /// Path (/usr/bin/dash) or package name.
        what: String,
        /// Image store.
        #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
        store: PathBuf,
    },
    /// Show what differs between two images: packages, files, sizes, kernel arguments, services.
    Diff {
        /// Image name, NAME@CHANNEL or NAME@GENERATION.
        before: String,
        /// The same, the later one.
        after: String,
        /// Image store.
        #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
        store: PathBuf,
    },
    /// Check that an image is what was built; with --rebuild, that its recipe makes exactly these bytes.
    Verify(ImageVerify),
    /// Point a channel to an image: machines boot what `stable` points to.
    Publish {
        /// NAME@GENERATION or NAME@CHANNEL; a plain name means its stable channel.
        image: String,
        /// Channel to move: stable, canary, or a name of your own.
        #[arg(long, default_value = "stable")]
        channel: String,
        /// Image store.
        #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
        store: PathBuf,
    },
    /// Point a channel back to the generation before; again, to the one before that.
    Rollback {
        /// Image name.
        image: String,
        /// Channel to move.
        #[arg(long, default_value = "stable")]
        channel: String,
        /// Image store.
        #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
        store: PathBuf,
    },
    /// Sign an image's kernel for UEFI's Secure Boot, which makes a new generation; without --key and --attach, say what is to be
    /// signed.
    Sign(ImageSign),
    /// Send an image to another host: to the store behind a `labshift serve`, or to a bucket. Only what is missing there is sent.
    Push(ImagePush),
    /// Let a store take images that another store's key signed, or build images for another store's server.
    Trust(ImageTrust),
    /// Boot an image in a virtual lab at once and show its serial line; Ctrl-C ends it.
    Run(ImageRun),
    /// Print the reference page of recipes (Markdown).
    Reference,
    /// Remove old generations; what a channel points to or a node uses always stays.
    Gc(ImageGc),
}

/// `image build`.
#[derive(Debug, Args)]
pub struct ImageBuild {
    /// Recipe file.
    #[arg(required = true)]
    pub recipe: Vec<PathBuf>,
    /// Image store to publish into; created when missing.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
    /// Build exactly what this lock file says; fails when the recipe asks for other packages by now.
    #[arg(long, value_name = "FILE")]
    pub locked: Option<PathBuf>,
    /// Channel that points to the image when it is built; machines boot `stable`.
    #[arg(long, default_value = "stable")]
    pub channel: String,
    /// Directory with labshift's own programs for the image; by default `programs` beside this command.
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// Package sources.
    #[command(flatten)]
    pub sources: Sources,
}

/// `image lock`.
#[derive(Debug, Args)]
pub struct ImageLock {
    /// Recipe file.
    pub recipe: PathBuf,
    /// Lock file to write; by default beside the recipe, with the extension `.lock`.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Take what the mirror has now, and print which versions changed; otherwise a lock that fits the recipe stays.
    #[arg(long)]
    pub update: bool,
    /// Package sources.
    #[command(flatten)]
    pub sources: Sources,
}

/// `image inspect`.
#[derive(Debug, Args)]
pub struct ImageInspect {
    /// Image name, NAME@CHANNEL or NAME@GENERATION.
    pub image: String,
    /// List the packages, the largest first.
    #[arg(long)]
    pub packages: bool,
    /// Levels of the tree of sizes.
    #[arg(long, default_value_t = 4)]
    pub depth: usize,
    /// Leave out of the tree what is smaller, in KiB.
    #[arg(long, value_name = "KIB", default_value_t = 1024)]
    pub least: u64,
    /// Image store.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
}

/// `image verify`.
#[derive(Debug, Args)]
pub struct ImageVerify {
    /// Image name, NAME@CHANNEL or NAME@GENERATION.
    pub image: String,
    /// Build it again from this recipe, from nothing but its lock, and compare every byte.
    #[arg(long, value_name = "RECIPE")]
    pub rebuild: Option<PathBuf>,
    /// Lock to build again from; by default the one that lies in the image.
    #[arg(long, value_name = "FILE", requires = "rebuild")]
    pub locked: Option<PathBuf>,
    /// Image store.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
    /// Directory with labshift's own programs for the image; by default `programs` beside this command.
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// Package sources.
    #[command(flatten)]
    pub sources: Sources,
}

/// `image sign`.
#[derive(Debug, Args)]
pub struct ImageSign {
    /// Image name, NAME@CHANNEL or NAME@GENERATION.
    pub image: String,
    /// Sign with this key (RSA, PEM, without a passphrase).
    #[arg(long, value_name = "FILE", conflicts_with = "attach")]
    pub key: Option<PathBuf>,
    /// Take the signature of this file: the kernel image as a signer elsewhere gave it back, or its PKCS #7 signature alone (DER).
    #[arg(long, value_name = "FILE")]
    pub attach: Option<PathBuf>,
    /// Certificate that the signature must belong to (PEM or DER); by default the recipe's.
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Channel that points to the signed image.
    #[arg(long, default_value = "stable")]
    pub channel: String,
    /// Image store.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
}

/// `image push`.
#[derive(Debug, Args)]
pub struct ImagePush {
    /// Image name, NAME@CHANNEL or NAME@GENERATION.
    pub image: String,
    /// Where to: https://HOST:PORT of `labshift serve`, or s3://BUCKET/PREFIX (keys and region from AWS_* variables).
    pub url: String,
    /// Channel that points to the image there.
    #[arg(long, default_value = "stable")]
    pub channel: String,
    /// File with the other server's admin token.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/labshift/admin.token",
        env = "LABSHIFT_TOKEN_FILE"
    )]
    pub token_file: PathBuf,
    /// Certificate of the authority that the other side's certificate is of (PEM); by default those that this machine trusts.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// S3 service that is not Amazon's: https://HOST:PORT.
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL")]
    pub endpoint: Option<String>,
    /// Image store.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
}

/// `image trust`.
#[derive(Debug, Args)]
pub struct ImageTrust {
    /// The other store's keys/signing.pub, or its keys/server.pub with --answers.
    pub key: PathBuf,
    /// The key is a server's: images built here from now on believe its boot answers.
    #[arg(long)]
    pub answers: bool,
    /// Image store that is to trust it.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
}

/// `image gc`.
#[derive(Debug, Args)]
pub struct ImageGc {
    /// Generations of each image that stay, the newest.
    #[arg(long, default_value_t = 3)]
    pub keep: usize,
    /// Only say what would go.
    #[arg(long)]
    pub dry_run: bool,
    /// Site file, for rooms that are pinned to a generation.
    #[arg(long, env = "LABSHIFT_SITE")]
    pub site: Option<PathBuf>,
    /// Do not ask the server which generations are in use.
    #[arg(long)]
    pub no_server: bool,
    /// Server.
    #[command(flatten)]
    pub server: Server,
    /// Image store.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
}

/// `image run`.
#[derive(Debug, Args)]
pub struct ImageRun {
    /// Image name, NAME@CHANNEL or NAME@GENERATION; it must be of kind host.
    pub image: String,
    /// Firmware of the workstation.
    #[arg(long, value_parser = ["bios", "uefi", "secure-boot"], default_value = "bios")]
    pub firmware: String,
    /// Image of the guest that the workstation shows on its screen; without one it computes.
    #[arg(long, value_name = "IMAGE")]
    pub desktop: Option<String>,
    /// Memory of the workstation in MiB.
    #[arg(long, default_value_t = 3072)]
    pub memory: u32,
    /// Directory for the lab's state, logs and sockets.
    #[arg(long, default_value = "lab")]
    pub output: PathBuf,
    /// End with success as soon as the serial line has this text.
    #[arg(long, value_name = "TEXT")]
    pub until: Option<String>,
    /// Record in which order the boot reads its root, and sign the order with the image: later boots fetch these blocks ahead.
    #[arg(long, conflicts_with = "until")]
    pub record: bool,
    /// Image store.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
}
