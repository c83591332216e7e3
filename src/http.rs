//! Plain HTTP/1.1 as a client: one connection, one request at a time, whole or streamed answers.

use crate::failure::Failure;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// Largest answer that is read whole, bytes.
const MAX_ANSWER: usize = 4 << 20;

/// A server, as its URL names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    host: String,
    port: u16,
    /// Path before `/v1` and `/health`, without a slash at its end.
    prefix: String,
}

impl Server {
    /// A server at a host and port.
    pub fn new(host: &str, port: u16) -> Server {
        Server {
            host: host.to_owned(),
            port,
            prefix: String::new(),
        }
    }

    /// Reads `http://HOST[:PORT][/PREFIX]`; a `/v1` at its end is what every OpenAI client appends.
    ///
    /// # Errors
    /// Text that is no such URL, with what would be right.
    pub fn parse(text: &str) -> Result<Server, Failure> {
        let wrong = |why: &str| {
            Err(Failure::unusable(format!(
                "URL {text:?}: {why}; give one such as http://127.0.0.1:30000"
            )))
        };
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => {
                return wrong("TLS is not spoken, measure the server behind its proxy");
            }
            Some(_) => return wrong("only http:// is spoken"),
            None => text,
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if path.contains(['?', '#']) || text.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return wrong("it has a query, a fragment or blanks");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => match v6.split_once(']') {
                Some((host, "")) => (host, None),
                Some((host, port)) => (host, port.strip_prefix(':')),
                None => return wrong("its '[' is not closed"),
            },
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port.map(str::parse::<u16>) {
            None => 80,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return wrong("its port is not 1 to 65535"),
        };
        if host.is_empty() || host.contains('@') {
            return wrong("it names no host");
        }
        let path = path.trim_end_matches('/');
        let path = path
            .strip_suffix("v1")
            .map_or(path, |p| p.trim_end_matches('/'));
        let prefix = match path {
            "" => String::new(),
            path => format!("/{path}"),
        };
        Ok(Server {
            host: host.to_owned(),
            port,
            prefix,
        })
    }

    /// Whether it is this machine by its name alone.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// `host:port`, with the brackets of an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.prefix)
    }
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The server took no connection.
    #[error("no connection to {0}: {1}")]
    Connect(String, String),
    /// It took longer than it may.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// The connection broke, or what came is not HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The server refused.
    #[error("HTTP {code}: {text}")]
    Status {
        /// The code.
        code: u16,
        /// The beginning of what it said.
        text: String,
    },
}

impl HttpError {
    pub(crate) fn broken(error: impl fmt::Display) -> HttpError {
        HttpError::Broken(error.to_string())
    }
}

/// A connection that carries one request after another.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    server: Server,
}

impl Connection {
    /// Opens one.
    ///
    /// # Errors
    /// A server that does not take it.
    pub async fn open(server: &Server) -> Result<Connection, HttpError> {
        let refused =
            |error: std::io::Error| HttpError::Connect(server.authority(), error.to_string());
        let stream = TcpStream::connect((server.host.as_str(), server.port))
            .await
            .map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(HttpError::broken)?;
        tokio::spawn(async move {
            // Its end, good or bad, is seen by whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Connection {
            sender,
            server: server.clone(),
        })
    }

    /// Whether another request may go out.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and gives the answer, whose body is still to be read. An answer other than
    /// 2xx is an error that quotes its beginning.
    ///
    /// # Errors
    /// A connection that broke, or a server that refused.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, HttpError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server.prefix))
            .header("host", self.server.authority())
            .header("user-agent", concat!("parplan/", env!("CARGO_PKG_VERSION")))
            .header("accept", "*/*");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(HttpError::broken)?;
        self.sender.ready().await.map_err(HttpError::broken)?;
        let answer = self
            .sender
            .send_request(request)
            .await
            .map_err(HttpError::broken)?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status();
        let text = whole(answer).await.unwrap_or_default();
        Err(refusal(code, &text))
    }
}

fn refusal(code: StatusCode, body: &[u8]) -> HttpError {
    const QUOTED: usize = 240;
    let text = String::from_utf8_lossy(body);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    HttpError::Status {
        code: code.as_u16(),
        text: line.chars().take(QUOTED).collect(),
    }
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes, HttpError> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER);
    Ok(body.collect().await.map_err(HttpError::broken)?.to_bytes())
}

/// Gets a path on a connection of its own, within `limit`.
///
/// # Errors
/// No connection, no answer in time, or an answer other than 2xx.
pub async fn get(
    server: &Server,
    path: &str,
    key: Option<&str>,
    limit: Duration,
) -> Result<Bytes, HttpError> {
    let all = async {
        let mut connection = Connection::open(server).await?;
        whole(connection.send("GET", path, key, None).await?).await
    };
    tokio::time::timeout(limit, all)
        .await
        .map_err(|_| HttpError::Timeout(limit))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_refused() {
        let read = |text: &str| Server::parse(text).unwrap().to_string();
        assert_eq!(read("http://127.0.0.1:30000"), "http://127.0.0.1:30000");
        assert_eq!(read("localhost:8000/v1/"), "http://localhost:8000");
        assert_eq!(read("http://host/base/v1"), "http://host:80/base");
        assert_eq!(read("http://[::1]:8000"), "http://[::1]:8000");
        for (text, why) in [
            ("https://host", "TLS"),
            ("ftp://host", "only http://"),
            ("http://", "no host"),
            ("http://host:0", "port"),
            ("http://host:port", "port"),
            ("http://a b", "blanks"),
            ("http://user@host", "no host"),
            ("http://[::1:8000", "not closed"),
        ] {
            let message = Server::parse(text).unwrap_err().to_string();
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        let local = |text: &str| Server::parse(text).unwrap().is_loopback();
        assert!(local("http://127.0.0.9:1") && local("http://[::1]") && local("http://LocalHost"));
        assert!(!local("http://10.0.0.1") && !local("http://127.0.0.1.example.org"));
    }
}
