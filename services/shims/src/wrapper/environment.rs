//! The child's environment: closed, and made from nothing it could inherit.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// Variables that lead all traffic through the broker. Not for the env file: with them it could lead around.
const PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"];
const NO_PROXY_VARIABLES: [&str; 4] = ["NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"];
/// Variables by which OpenSSL, Python's requests and Node find the stack's CA.
const CA_VARIABLES: [&str; 3] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"];

/// Why an environment could not be made. Names variables and lines, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// A line of the env file.
    #[error("line {line} of the env file {problem}; each line must be `NAME=value`")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A variable that is the wrapper's.
    #[error("the env file sets {0}, which the wrapper sets itself; take it out")]
    Reserved(String),
    /// The proxy's address.
    #[error("--proxy must be `http://<address>:<port>`")]
    Proxy,
}

/// The whole environment of the child. `proxy` is `http://<address>:<port>`; name and token become its user part.
///
/// # Errors
/// See [`EnvironmentError`].
pub fn environment(
    path: Option<OsString>,
    proxy: &str,
    proxy_name: &str,
    proxy_token: &str,
    ca: &Path,
    env_file: &str,
) -> Result<Vec<(OsString, OsString)>, EnvironmentError> {
    let authority = proxy.strip_prefix("http://").ok_or(EnvironmentError::Proxy)?;
    if authority.parse::<std::net::SocketAddr>().is_err() {
        return Err(EnvironmentError::Proxy);
    }
    let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let url = format!("http://{}:{}@{authority}", encoded(proxy_name), encoded(proxy_token));

    let mut all: BTreeMap<OsString, OsString> = BTreeMap::new();
    let default_path = || "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into();
    all.insert("PATH".into(), path.unwrap_or_else(default_path));
    all.insert("HOME".into(), "/tmp".into());
    all.insert("LANG".into(), "C.UTF-8".into());
    for (name, value) in parse(env_file)? {
        if [&PROXY_VARIABLES[..], &NO_PROXY_VARIABLES, &CA_VARIABLES].concat().contains(&name.as_str()) {
            return Err(EnvironmentError::Reserved(name));
        }
        all.insert(name.into(), value.into());
    }
    all.extend(PROXY_VARIABLES.map(|name| (name.into(), OsString::from(&url))));
    all.extend(CA_VARIABLES.map(|name| (name.into(), ca.as_os_str().to_owned())));
    Ok(all.into_iter().collect())
}

fn parse(text: &str) -> Result<Vec<(String, String)>, EnvironmentError> {
    let mut all: Vec<(String, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let refuse = |problem| EnvironmentError::Line { line: index.saturating_add(1), problem };
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| refuse("has no '='"))?;
        let named = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !named {
            return Err(refuse("has a name outside letters, digits and '_'"));
        }
        if value.contains('\0') {
            return Err(refuse("has a NUL in its value"));
        }
        if all.iter().any(|(other, _)| other == name) {
            return Err(refuse("repeats a name"));
        }
        all.push((name.to_owned(), value.to_owned()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
    use super::*;

    fn made(env_file: &str) -> Result<BTreeMap<String, String>, EnvironmentError> {
        let all = environment(
            Some("/bin".into()),
            "http://10.87.17.2:10255",
            "mcp-tasks-marvin",
            "a_b-c",
            Path::new("/etc/assistant/ca.pem"),
            env_file,
        )?;
        Ok(all.into_iter().map(|(k, v)| (k.into_string().unwrap(), v.into_string().unwrap())).collect())
    }

    #[test]
    fn the_environment_is_closed() {
        let all = made("# key\n\nAPI_KEY=placeholder=x\nLANG=C\n").unwrap();
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "API_KEY",
                "HOME",
                "HTTPS_PROXY",
                "HTTP_PROXY",
                "LANG",
                "NODE_EXTRA_CA_CERTS",
                "PATH",
                "REQUESTS_CA_BUNDLE",
                "SSL_CERT_FILE",
                "http_proxy",
                "https_proxy"
            ]
        );
        assert_eq!(all["API_KEY"], "placeholder=x");
        assert_eq!(all["LANG"], "C");
        assert_eq!(all["HTTPS_PROXY"], "http://mcp%2Dtasks%2Dmarvin:a%5Fb%2Dc@10.87.17.2:10255");
        assert_eq!(all["https_proxy"], all["HTTPS_PROXY"]);
    }

    #[test]
    fn odd_files_are_refused_without_their_values() {
        for bad in ["secretvalue", "=secretvalue", "1A=secretvalue", "A B=secretvalue", "A=secretvalue\nA=secretvalue"]
        {
            let error = made(bad).unwrap_err().to_string();
            assert!(!error.contains("secretvalue"), "{error}");
        }
        for name in ["HTTPS_PROXY", "no_proxy", "ALL_PROXY", "SSL_CERT_FILE"] {
            assert_eq!(made(&format!("{name}=x")), Err(EnvironmentError::Reserved(name.to_owned())));
        }
    }

    #[test]
    fn the_proxy_is_an_address() {
        for bad in ["10.0.0.1:1", "https://10.0.0.1:1", "http://proxy:1", "http://10.0.0.1", "http://a@10.0.0.1:1"] {
            let made = environment(None, bad, "n", "t", Path::new("/ca"), "");
            assert_eq!(made, Err(EnvironmentError::Proxy), "{bad}");
        }
    }
}
