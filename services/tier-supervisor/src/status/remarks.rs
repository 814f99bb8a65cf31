//! What secret-broker knows and the supervisor does not: models and tools that are named in the files and are not there.
//! Asked by whoever looks at the status, as an operator, over the broker's control socket; the supervisor itself never asks.

use std::path::Path;
use std::time::Duration;

use assistant_proto::secret::ListRemarksRequest;
use assistant_proto::secret::secret_service_client::SecretServiceClient;

use super::{StatusError, connect, no_answer};

/// The broker may have to ask a provider, for which it takes eight seconds at most. Nobody is kept waiting in silence for ten.
const ANSWER_WITHIN: Duration = Duration::from_secs(9);
/// More than one route's models and a tier's tools ever give; a screen bears no more.
const MOST: usize = 32;

/// The broker's remarks. That it gives none is one.
pub(super) async fn of_broker(supervisor: &Path) -> Vec<String> {
    let asked = tokio::time::timeout(ANSWER_WITHIN, ask(&supervisor.with_file_name("secret-broker.sock"))).await;
    match asked.unwrap_or_else(|_| Err(StatusError::NoAnswer(format!("not within {} s", ANSWER_WITHIN.as_secs())))) {
        Ok(remarks) => remarks,
        Err(error) => vec![format!("secret-broker was not asked whether models and tools are there: {error}")],
    }
}

async fn ask(socket: &Path) -> Result<Vec<String>, StatusError> {
    let mut client = SecretServiceClient::new(connect(socket).await?);
    let answer = client.list_remarks(ListRemarksRequest {}).await.map_err(|status| no_answer(&status))?;
    Ok(answer.into_inner().remarks.into_iter().take(MOST).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use assistant_proto::secret::secret_service_server::{SecretService, SecretServiceServer};
    use assistant_proto::secret::{
        ExplainDecisionRequest, ExplainDecisionResponse, ListModelsRequest, ListModelsResponse, ListRemarksResponse,
        ListRulesRequest, ListRulesResponse, ListSecretsRequest, ListSecretsResponse, ListToolsRequest,
        ListToolsResponse,
    };
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response, Status};

    use super::*;

    struct Broker;

    #[tonic::async_trait]
    impl SecretService for Broker {
        async fn list_secrets(&self, _: Request<ListSecretsRequest>) -> Result<Response<ListSecretsResponse>, Status> {
            Err(Status::unimplemented(""))
        }
        async fn list_rules(&self, _: Request<ListRulesRequest>) -> Result<Response<ListRulesResponse>, Status> {
            Err(Status::unimplemented(""))
        }
        async fn explain_decision(
            &self,
            _: Request<ExplainDecisionRequest>,
        ) -> Result<Response<ExplainDecisionResponse>, Status> {
            Err(Status::unimplemented(""))
        }
        async fn list_models(&self, _: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
            Err(Status::unimplemented(""))
        }
        async fn list_tools(&self, _: Request<ListToolsRequest>) -> Result<Response<ListToolsResponse>, Status> {
            Err(Status::unimplemented(""))
        }
        async fn list_remarks(&self, _: Request<ListRemarksRequest>) -> Result<Response<ListRemarksResponse>, Status> {
            let remarks = (0..100).map(|n| format!("remark {n}")).collect();
            Ok(Response::new(ListRemarksResponse { remarks }))
        }
    }

    #[tokio::test]
    async fn the_brokers_remarks_are_asked_for_beside_the_supervisors_socket() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = dir.path().join("tier-supervisor.sock");
        let none = of_broker(&supervisor).await;
        assert!(matches!(none.as_slice(), [one] if one.contains("was not asked")), "{none:?}");
        let listener = UnixListener::bind(dir.path().join("secret-broker.sock")).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(SecretServiceServer::new(Broker))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::select! {
            outcome = server => outcome.unwrap(),
            remarks = of_broker(&supervisor) => {
                assert_eq!((remarks.len(), remarks[0].as_str()), (MOST, "remark 0"));
            }
        }
    }
}
