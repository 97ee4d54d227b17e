//! HTTPS beside HTTP, for firmware and loaders that were given our certificate authority.
//!
//! The certificate should have an RSA key: iPXE verifies ECDSA only since the end of 2025. TLS 1.2 and 1.3; loaders that know
//! nothing but RSA key exchange (iPXE before 2024) can't be served safely and stay with HTTP.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    serve::{Listener, ListenerExt},
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// A handshake must be done by then.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(15);
/// Handshakes at one time: each costs a signature.
const MOST: usize = 256;
/// `rsaEncryption` (1.2.840.113549.1.1.1) as a certificate names its key's kind.
const RSA: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// Why there is no HTTPS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that is not what it should be.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The two do not fit together.
    #[error("certificate {certificate} and key {key} can't be used together: {reason}")]
    Pair {
        /// Certificate file.
        certificate: PathBuf,
        /// Key file.
        key: PathBuf,
        /// Why.
        reason: rustls::Error,
    },
}

/// A server with a certificate.
pub struct Tls(TlsAcceptor);

impl Tls {
    /// Reads the certificate chain and its key, both PEM.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let fault = |path: &Path, reason: rustls::pki_types::pem::Error| TlsError::File {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .map_err(|reason| fault(certificate, reason))?;
        let Some(own) = chain.first() else {
            let reason = "holds no certificate".to_owned();
            return Err(TlsError::File { path: certificate.to_owned(), reason });
        };
        if !own.windows(RSA.len()).any(|window| window == RSA) {
            tracing::warn!(
                "{}: the key is not RSA; iPXE from before the end of 2025 will refuse it",
                certificate.display()
            );
        }
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|reason| fault(key, reason))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
            .map_err(|reason| TlsError::Pair {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
                reason,
            })?;
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }

    /// Serves the routes until the future is dropped.
    pub async fn serve(self, listener: TcpListener, routes: Router) -> io::Result<()> {
        let address = listener.local_addr()?;
        let (ready, handshaken) = mpsc::channel(64);
        let places = Arc::new(Semaphore::new(MOST));
        let accepting = async {
            loop {
                let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
                let (stream, peer) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        tracing::warn!("accepting an HTTPS connection: {e}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (acceptor, ready) = (self.0.clone(), ready.clone());
                tokio::spawn(async move {
                    match timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => drop(ready.send((stream, peer)).await),
                        Ok(Err(e)) => tracing::info!("HTTPS handshake with {peer}: {e}"),
                        Err(_) => tracing::debug!("HTTPS handshake with {peer}: too slow"),
                    }
                    drop(place);
                });
            }
        };
        let guests = Guests { handshaken, address }.tap_io(|_| {});
        let service = routes.into_make_service_with_connect_info::<SocketAddr>();
        tokio::select! {
            ended = accepting => ended,
            ended = axum::serve(guests, service) => ended,
        }
    }
}

/// Connections whose handshake is done.
struct Guests {
    handshaken: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl Listener for Guests {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.handshaken.recv().await {
            Some(guest) => guest,
            // The sender lives as long as this does: both are parts of one future.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
