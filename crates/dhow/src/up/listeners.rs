//! The platform's own listeners, bound before anything starts, and what answers on each.

use std::sync::Arc;

use anyhow::Result;
use apiserver::ApiServer;
use daemon::listener::{Counters, Limits, Listener};
use daemon::{OnExit, Supervisor, readiness::Readiness, telemetry, tls};
use futures::FutureExt;
use prometheus_client::registry::Registry as Metrics;
use tower::Service;

use super::credentials;
use super::settings::Settings;
use super::storage;

pub struct Bound {
    pub api: Listener,
    pub console: Listener,
    pub metrics: Listener,
    pub registry: Listener,
}

impl Bound {
    /// All of them or none: a taken port is told before anything has started.
    pub async fn bind(settings: &Settings) -> Result<Self> {
        Ok(Self {
            api: Listener::bind(&settings.api.to_string(), "--api-listen").await?,
            console: Listener::bind(&settings.console.to_string(), "--console-listen").await?,
            metrics: Listener::bind(&settings.metrics.to_string(), "--metrics-listen").await?,
            registry: Listener::bind(&settings.registry.to_string(), "--registry-listen").await?,
        })
    }

    /// Lets what becomes of their clients be seen among the metrics.
    pub fn counted(self, metrics: &mut Metrics) -> Self {
        let counters = Counters::register(metrics);
        Self {
            api: self.api.counted(&counters, "api"),
            console: self.console.counted(&counters, "console"),
            metrics: self.metrics.counted(&counters, "metrics"),
            registry: self.registry.counted(&counters, "registry"),
        }
    }

    /// Serves them in the last phase, so that a draining platform can still be asked. Returns the certificate that
    /// clients of the API must trust.
    pub fn serve(
        self,
        tasks: &mut Supervisor,
        settings: &Settings,
        api: &ApiServer,
        registry: &registry::Registry,
        token: &str,
        metrics: Metrics,
    ) -> Result<String> {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), settings.api.ip().to_string()];
        let identity = tls::identity(&settings.data_dir.join("tls"), &names, (settings.clock)())?;
        let limits = Limits::default();

        let external = api.external();
        let answer = move |request| {
            let answered = external.clone().call(request);
            async move { answered.await.unwrap_or_else(|never| match never {}) }
        };
        let server = Some(identity.server);
        tasks.spawn(super::API, "api listener", OnExit::ShutDown, |stop| self.api.serve(server, limits, answer, stop));

        let known: Arc<str> = token.into();
        let authorize = {
            let known = known.clone();
            move |parts: &http::request::Parts, _namespace: &str| {
                let decided = match credentials::bearer(parts) {
                    Some(token) if credentials::same(token, &known) => platform::Authorization::Allowed,
                    _ => platform::Authorization::Unauthenticated,
                };
                std::future::ready(decided).boxed()
            }
        };
        let uploads = platform::Limits { max_source_bytes: settings.max_source, ..platform::Limits::default() };
        let backups = storage::backups(&settings.data_dir);
        let uploads = platform::service(registry.clone(), Arc::new(authorize), uploads).with_backups(backups);
        let answer = move |request| {
            let uploads = uploads.clone();
            async move { uploads.handle(request).await }
        };
        tasks.spawn(super::API, "platform listener", OnExit::ShutDown, |stop| {
            self.console.serve(None, limits, answer, stop)
        });

        let writers = Arc::new(move |parts: &http::request::Parts| credentials::presents(parts, &known));
        let images = registry.service(writers);
        let answer = move |request| {
            let images = images.clone();
            async move { images.handle(request).await }
        };
        tasks.spawn(super::API, "registry listener", OnExit::ShutDown, |stop| {
            self.registry.serve(None, limits, answer, stop)
        });

        // This is served only once everything is built, so nobody is left to wait for.
        let (metrics, readiness) = (Arc::new(metrics), Readiness::default());
        let answer = move |request| {
            let response = telemetry::answer(&metrics, &readiness, &request);
            async move { response }
        };
        tasks.spawn(super::API, "metrics listener", OnExit::ShutDown, |stop| {
            self.metrics.serve(None, limits, answer, stop)
        });
        Ok(identity.authority_pem)
    }
}
