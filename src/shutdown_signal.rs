//! The signal that asks a service to stop.

use tokio::signal;

/// Completes at Ctrl-C, and on Unix at SIGTERM, which ECS, Kubernetes and systemd send to stop a service.
///
/// Pass it to [`Consumer::run_until`](crate::Consumer::run_until), which then stops reading, settles what is
/// in flight and stores the checkpoints. The orchestrator must wait for longer than
/// [`shutdown_timeout`](crate::consumer::ConsumerBuilder::shutdown_timeout), 20 s by default, before it kills the
/// process.
///
/// After the first poll these signals no longer end the process by themselves. If the process cannot listen
/// for the signals, this future never completes.
pub async fn shutdown_signal() {
    let interrupt = async {
        if signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match signal::unix::signal(signal::unix::SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
