//! Images that admins push to `labshift serve`: routes beside the fleet's, for listeners on which a token may travel (HTTPS, and
//! this machine's own).
//!
//! ```text
//!   POST /api/v1/store/NAME/GENERATION            manifest and signature -> names of files that are missing
//!   PUT  /api/v1/store/NAME/GENERATION/files/F    one file
//!   POST /api/v1/store/NAME/GENERATION/publish    the image appears, and a channel points to it
//! ```

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{post, put},
};
use futures_util::StreamExt;
use jiff::Timestamp;
use labshift_fleet::Fleet;
use labshift_image::{
    BuildError, Store,
    receive::{self, Incoming, Missing, Offer, Publish},
};
use labshift_model::api::Problem;
use serde_json::{Value, json};
use tokio::task::block_in_place;

/// Largest manifest with its signature, in bytes.
const MANIFEST_LIMIT: usize = 4 << 20;

struct Shared {
    fleet: Arc<Fleet>,
    store: PathBuf,
}

struct Refused(StatusCode, String);

impl From<BuildError> for Refused {
    fn from(error: BuildError) -> Self {
        let status = match &error {
            BuildError::Refused { .. } | BuildError::Channel { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        tracing::warn!("a pushed image: {error}");
        Refused(status, error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Problem { problem: self.1 })).into_response()
    }
}

type Answer<T> = Result<Json<T>, Refused>;
type At = Path<(String, String)>;

/// The routes.
pub fn router(fleet: Arc<Fleet>, store: PathBuf) -> Router {
    let small = Router::new()
        .route("/api/v1/store/{name}/{generation}", post(offer))
        .route("/api/v1/store/{name}/{generation}/publish", post(publish))
        .layer(DefaultBodyLimit::max(MANIFEST_LIMIT));
    let large = Router::new()
        .route("/api/v1/store/{name}/{generation}/files/{file}", put(file))
        .layer(DefaultBodyLimit::disable());
    small.merge(large).with_state(Arc::new(Shared { fleet, store }))
}

impl Shared {
    /// The store, for an admin.
    fn open(&self, headers: &HeaderMap) -> Result<Store, Refused> {
        if !self.fleet.is_admin(headers) {
            let problem = "this needs the admin's token in the header Authorization: Bearer".to_owned();
            return Err(Refused(StatusCode::UNAUTHORIZED, problem));
        }
        Ok(block_in_place(|| Store::existing(&self.store))?)
    }
}

async fn offer(
    State(shared): State<Arc<Shared>>,
    Path((name, generation)): At,
    headers: HeaderMap,
    Json(offer): Json<Offer>,
) -> Answer<Missing> {
    let store = shared.open(&headers)?;
    let missing = block_in_place(|| receive::offer(&store, (&name, &generation), &offer))?;
    let server = labshift_model::manifest::public(&block_in_place(|| store.server_key())?);
    Ok(Json(Missing { missing, server }))
}

async fn file(
    State(shared): State<Arc<Shared>>,
    Path((name, generation, file)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Value> {
    let store = shared.open(&headers)?;
    let mut incoming = block_in_place(|| Incoming::begin(&store, (&name, &generation), &file))?;
    let mut stream = body.into_data_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|e| Refused(StatusCode::BAD_REQUEST, format!("{file} broke off: {e}")))?;
        block_in_place(|| incoming.write(&bytes))?;
    }
    block_in_place(|| incoming.finish())?;
    Ok(Json(json!({ "done": format!("{file} is here") })))
}

async fn publish(
    State(shared): State<Arc<Shared>>,
    Path((name, generation)): At,
    request: Request,
) -> Answer<Value> {
    let store = shared.open(request.headers())?;
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    let bytes = axum::body::to_bytes(request.into_body(), 64 << 10).await;
    let wanted = bytes.ok().and_then(|bytes| serde_json::from_slice::<Publish>(&bytes).ok());
    let Some(Publish { channel }) = wanted else {
        return Err(Refused(StatusCode::BAD_REQUEST, "the request names no channel".to_owned()));
    };
    let at = (name.as_str(), generation.as_str());
    block_in_place(|| receive::publish(&store, at, &channel, Timestamp::now()))?;
    let done = format!("{name}: {channel} is {generation}");
    let peer = peer.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    shared.fleet.note_push(peer, name, generation, channel).await;
    Ok(Json(json!({ "done": done })))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path as FilePath};

    use labshift_fleet::{Clock, FleetOptions};
    use labshift_image::{
        Progress, Stage,
        channel::STABLE,
        lock::{self, Lock},
        push::{self, Server},
        receive::With,
    };
    use labshift_model::{
        manifest::{self, FileEntry, ImageKind, Manifest, Root},
        paths,
        site::Site,
    };

    use super::*;

    struct Silent;

    impl Progress for Silent {
        fn stage(&self, _: Stage, _: &str) {}
        fn bytes(&self, _: Stage, _: u64, _: u64) {}
        fn warning(&self, _: &str) {}
    }

    /// An image of three files in a store of its own.
    fn image(directory: &FilePath, root: &[u8]) -> (Store, String) {
        let store = Store::open(directory).unwrap();
        let lock = Lock {
            schema: lock::SCHEMA,
            image: "lab".into(),
            wanted: vec![],
            leave_out: vec![],
            archives: vec![],
            packages: vec![],
            tools: vec![],
            helpers: None,
        };
        let files =
            [("lock.json", lock.to_bytes()), (paths::KERNEL, vec![7; 3 << 20]), (paths::ROOT, root.to_vec())];
        let hash = |bytes: &[u8]| manifest::generation_of(bytes);
        let entry = |b: &Vec<u8>| FileEntry { size: b.len() as u64, sha256: hash(b) };
        let manifest = Manifest {
            schema: manifest::SCHEMA,
            name: "lab".into(),
            kind: ImageKind::Host,
            architecture: "amd64".into(),
            kernel_release: "6.12".into(),
            kernel_arguments: String::new(),
            root: Root { root_hash: "00".into(), salt: "11".into(), data_size: 4096, block_size: 4096 },
            files: files.iter().map(|(name, b)| ((*name).to_owned(), entry(b))).collect::<BTreeMap<_, _>>(),
            lock: "22".into(),
            services: vec![],
            modules: vec![],
            ports: vec![],
            valid_days: None,
            disk: None,
        };
        let bytes = manifest.to_bytes();
        let generation = manifest::generation_of(&bytes);
        let work = store.workplace("lab").unwrap();
        for (name, bytes) in &files {
            fs::write(work.path().join(name), bytes).unwrap();
        }
        let signature = manifest::sign(&bytes, &store.signing_key().unwrap(), Timestamp::UNIX_EPOCH, None);
        fs::write(work.path().join(paths::MANIFEST), &bytes).unwrap();
        fs::write(work.path().join(paths::SIGNATURE), serde_json::to_vec(&signature).unwrap()).unwrap();
        store.publish(work, ("lab", &generation), STABLE, Timestamp::UNIX_EPOCH).unwrap();
        (store, generation)
    }

    /// Over a real connection: refused without the token and without trust, then only what is missing is sent.
    #[test]
    fn an_image_comes_over_http() {
        let place = tempfile::tempdir().unwrap();
        let (ours, first) = image(&place.path().join("ours"), b"root one");
        let theirs = place.path().join("theirs");
        let their_store = Store::open(&theirs).unwrap();
        let site = Site::parse("site.toml", include_str!("lab/site.toml")).unwrap();
        let clock = Clock::parse("system", &site.timezone).unwrap();
        let state = place.path().join("state");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (url, stop, ended) = runtime.block_on(async {
            let options =
                FleetOptions { site, store: theirs.clone(), state: state.clone(), interface: None, clock };
            let fleet = Arc::new(Fleet::open(options).unwrap());
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let engine = fleet.clone();
            let ended = tokio::spawn(async move { engine.run(async { drop(stopped.await) }).await.unwrap() });
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let routes = fleet.router().merge(router(fleet, theirs.clone()));
            let service = routes.into_make_service_with_connect_info::<SocketAddr>();
            tokio::spawn(async move { axum::serve(listener, service).await });
            (url, stop, ended)
        });
        let token = fs::read_to_string(state.join("admin.token")).unwrap();
        let push_to = |token: &str, reference: &str| {
            let believed = ours.servers().unwrap();
            let server = Server::new(&url, token, believed, push::agent(None).unwrap()).unwrap();
            push::push(&ours, reference, &server, "canary", &Silent).map_err(|e| e.to_string())
        };
        assert!(push_to("wrong", "lab").unwrap_err().contains("needs the admin's token"));
        let error = push_to(&token, "lab").unwrap_err();
        assert!(error.contains("does not trust") && error.contains("keys/trusted"), "{error}");
        assert!(their_store.images().is_empty());

        let key = fs::read_to_string(place.path().join("ours/keys/signing.pub")).unwrap();
        receive::trust(&their_store, &key, With::Images).unwrap();
        let error = push_to(&token, "lab").unwrap_err();
        assert!(error.contains("would not believe its boot answers"), "{error}");
        let server = fs::read_to_string(theirs.join("keys/server.pub")).unwrap();
        receive::trust(&ours, &server, With::Answers).unwrap();
        let pushed = push_to(&token, "lab").unwrap();
        assert_eq!((pushed.sent.len(), pushed.had), (3, 0));
        assert_eq!(their_store.channel("lab", "canary").unwrap(), first);
        labshift_image::inspect(&their_store, "lab", Some(&first)).unwrap();

        let (_, second) = image(&place.path().join("ours"), b"root two");
        let pushed = push_to(&token, "lab").unwrap();
        assert_eq!((&pushed.sent[..], pushed.had), (&[paths::ROOT.to_owned()][..], 2));
        assert_eq!(push_to(&token, "lab").unwrap().sent, [""; 0]);
        assert_eq!(their_store.channel("lab", "canary").unwrap(), second);
        labshift_image::inspect(&their_store, "lab", Some(&second)).unwrap();
        assert!(Server::new("http://lab.example", &token, vec![], push::agent(None).unwrap()).is_err());
        let _ = stop.send(());
        runtime.block_on(ended).unwrap();
    }
}
