//! The client that the TUF conformance suite drives (`CLIENT-CLI.md` in theupdateframework/tuf-conformance): a thin
//! command line around the code that the updater itself follows releases with.
//!
//! One thing differs from the product: keys may also be ECDSA and RSA, because most of the suite's repositories have such
//! keys, while a release key of the product is an Ed25519 key. The clock is the system's: a dynamically linked build sees
//! a faked one.
//!
//! ```text
//! cargo build --workspace --example tuf_client
//! pytest tuf_conformance --entrypoint target/debug/examples/tuf_client
//! ```

use clap::{Parser, Subcommand};
use picket_transport::{Client, Network, Timeouts};
use picket_update::Clock;
use picket_update::fetch::{Download, Location, Server};
use picket_update::trust::{TrustClient, TrustStore, VerifiedTarget, provider};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, UnparsedPublicKey, VerificationAlgorithm,
};
use sigstore_crypto::{CryptoProvider, Error as CryptoError, HashContext, SigningScheme};
use sigstore_types::HashAlgorithm;
use std::error::Error;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

/// The largest root that `init` takes, in bytes.
const MAX_ROOT: u64 = 512_000;

/// The suite's protocol.
#[derive(Parser)]
struct Line {
    /// Where trusted metadata is kept.
    #[arg(long)]
    metadata_dir: PathBuf,
    /// Where metadata comes from.
    #[arg(long)]
    metadata_url: Option<String>,
    /// What to download.
    #[arg(long = "target-name")]
    target_names: Vec<String>,
    /// Where targets come from.
    #[arg(long)]
    target_base_url: Option<String>,
    /// Where downloaded targets go.
    #[arg(long)]
    target_dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Trust this root from now on.
    Init { root: PathBuf },
    /// Bring the metadata up to date.
    Refresh,
    /// The same, then download the targets.
    Download,
}

/// What the product accepts, and what the suite's other repositories need besides.
#[derive(Debug)]
struct AlsoEcdsaAndRsa;

impl CryptoProvider for AlsoEcdsaAndRsa {
    fn hash(&self, algorithm: HashAlgorithm) -> sigstore_crypto::Result<Box<dyn HashContext>> {
        provider().hash(algorithm)
    }

    fn verify_raw(
        &self,
        scheme: SigningScheme,
        key: &[u8],
        data: &[u8],
        signature: &[u8],
    ) -> sigstore_crypto::Result<()> {
        let algorithm: &'static dyn VerificationAlgorithm = match scheme {
            SigningScheme::EcdsaP256Sha256 => &ECDSA_P256_SHA256_ASN1,
            SigningScheme::EcdsaP384Sha384 => &ECDSA_P384_SHA384_ASN1,
            SigningScheme::RsaPssSha256 => &RSA_PSS_2048_8192_SHA256,
            SigningScheme::RsaPssSha384 => &RSA_PSS_2048_8192_SHA384,
            SigningScheme::RsaPssSha512 => &RSA_PSS_2048_8192_SHA512,
            _ => return provider().verify_raw(scheme, key, data, signature),
        };
        let refused = |_| CryptoError::Verification(format!("{scheme:?}"));
        UnparsedPublicKey::new(algorithm, key).verify(data, signature).map_err(refused)
    }

    fn verify_prehashed(
        &self,
        scheme: SigningScheme,
        key: &[u8],
        digest: &[u8],
        signature: &[u8],
    ) -> sigstore_crypto::Result<()> {
        provider().verify_prehashed(scheme, key, digest, signature)
    }
}

fn main() -> ExitCode {
    match run(&Line::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            let _ = writeln!(std::io::stderr(), "tuf_client: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(line: &Line) -> Result<(), Box<dyn Error>> {
    sigstore_crypto::install_default_provider(&AlsoEcdsaAndRsa).map_err(|_| "another provider is installed")?;
    let store = TrustStore::new(&line.metadata_dir);
    let clock = Clock::system();
    let client = TrustClient::new(&store, &clock);
    if let Verb::Init { root } = &line.verb {
        client.root(Some(&picket_durable::read_bounded(root, MAX_ROOT)?))?;
        return Ok(());
    }
    let metadata = line.metadata_url.as_deref().ok_or("--metadata-url is missing")?;
    let targets = line.target_base_url.as_deref().unwrap_or(metadata);
    let location = Location::Apart { metadata: metadata.parse()?, targets: targets.parse()? };
    let server = Server { client: Client::new("tuf_client", Timeouts::default(), &Network::default()), location };
    let mut trusted = client.refresh(None, &server)?;
    if matches!(line.verb, Verb::Download) {
        let dir = line.target_dir.as_deref().ok_or("--target-dir is missing")?;
        for name in &line.target_names {
            let target = client.find(&mut trusted, &server, name)?;
            download(&server, &target, dir, &line.metadata_dir.join("downloads"))?;
        }
    }
    Ok(())
}

/// Downloads `target` into `dir`, unless it is there; what is not complete yet waits in `partial`.
fn download(server: &Server, target: &VerifiedTarget, dir: &Path, partial: &Path) -> Result<(), Box<dyn Error>> {
    let inside = Path::new(&target.path).components().filter(|part| matches!(part, Component::Normal(_)));
    let place = dir.join(inside.collect::<PathBuf>());
    let there = picket_durable::read_if_present(&place, target.length).ok().flatten();
    if there.is_some_and(|bytes| target.check(&bytes).is_ok()) {
        return Ok(());
    }
    let url = server.location.target(target)?;
    let complete = Download { client: &server.client, url, target, dir: partial, progress: &|_, _| {} }.run()?;
    if let Some(folder) = place.parent() {
        picket_durable::create_dir(folder, 0o755)?;
    }
    Ok(picket_durable::rename(&complete, &place)?)
}
