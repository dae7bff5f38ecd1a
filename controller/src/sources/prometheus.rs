//! The instant query of a Prometheus server: one number, or one sentence why not.
//!
//! <https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries>

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::base::Base;
use super::http::Http;
use super::{chain, excerpt, read_off};

/// Why a query gave no number.
#[derive(Debug, PartialEq)]
pub(super) enum Trouble {
    /// It gave NaN: often there was nothing to divide by.
    Nan(String),
    /// Everything else.
    Other(String),
}

impl Trouble {
    pub(super) fn text(self) -> String {
        let (Self::Nan(text) | Self::Other(text)) = self;
        text
    }
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    data: Option<Data>,
    #[serde(rename = "errorType")]
    error_type: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    kind: String,
    result: Value,
}

/// The one number that `query` gives now.
pub(super) async fn query(http: &Http, base: &Base, query: &str) -> Result<f64, Trouble> {
    let asked = format!("{base}: the query `{}`", excerpt(query));
    let reply = http
        .ask(base, "/api/v1/query", &[("query", query)])
        .await
        .map_err(|e| Trouble::Other(format!("{asked} was not answered: {}", chain(&e))))?;
    read_off(reply, move |reply| number(reply.status, &reply.body, &asked)).await.unwrap_or_else(|text| Err(Trouble::Other(text)))
}

fn number(status: StatusCode, body: &[u8], asked: &str) -> Result<f64, Trouble> {
    let other = |text: String| Err(Trouble::Other(text));
    let answer: Answer = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(_) if !status.is_success() => {
            return other(format!("{asked} was answered with HTTP {}: {}", status.as_u16(), excerpt(&String::from_utf8_lossy(body))));
        }
        Err(error) => return other(format!("{asked} was answered with what is not Prometheus's JSON ({error}): is the URL right?")),
    };
    if answer.status != "success" || !status.is_success() {
        let kind = answer.error_type.as_deref().unwrap_or("error");
        let message = answer.error.as_deref().unwrap_or("without a message");
        return other(format!("{asked} was refused with HTTP {}: {}: {}", status.as_u16(), excerpt(kind), excerpt(message)));
    }
    let Some(data) = answer.data else { return other(format!("{asked} was answered without data")) };
    let sample = match (data.kind.as_str(), &data.result) {
        ("scalar", pair) => pair,
        ("vector", Value::Array(series)) => match series.as_slice() {
            [] => {
                return other(format!(
                    "{asked} gives no series (empty result): check the names of metric and labels; where no series means zero, write `… or vector(0)`"
                ));
            }
            [one] => match one.get("value") {
                Some(pair) => pair,
                None => return other(format!("{asked} gives a histogram; ask for a number, as histogram_quantile(0.99, …)")),
            },
            many => return other(format!("{asked} gives {} series, aggregate them: sum(...)", many.len())),
        },
        (kind, _) => return other(format!("{asked} gives a {}; a scalar or one series is wanted", excerpt(kind))),
    };
    let text = sample.get(1).and_then(Value::as_str).unwrap_or_default();
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(value) if value.is_nan() => Err(Trouble::Nan(format!("{asked} gives NaN: there may be nothing to divide by"))),
        Ok(value) => other(format!("{asked} gives {value}, not a finite number")),
        Err(_) => other(format!("{asked} gives {:?}, not a number", excerpt(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<f64, Trouble> {
        number(StatusCode::OK, body.as_bytes(), "Q")
    }

    fn vector(result: &str) -> String {
        format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{result}]}}}}"#)
    }

    #[test]
    fn one_number_or_one_sentence() {
        let one = r#"{"metric":{},"value":[1435781451.781,"0.25"]}"#;
        assert_eq!(read(&vector(one)), Ok(0.25));
        assert_eq!(read(r#"{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}"#), Ok(3.0));
        assert!(matches!(read(&vector(r#"{"metric":{},"value":[1,"NaN"]}"#)), Err(Trouble::Nan(_))));
        for (body, wanted) in [
            (vector(&format!("{one},{one},{one}")), "3 series, aggregate them: sum("),
            (vector(""), "empty result"),
            (vector(r#"{"metric":{},"value":[1,"+Inf"]}"#), "not a finite number"),
            (vector(r#"{"metric":{},"value":[1,7]}"#), "not a number"),
            (vector(r#"{"metric":{},"histogram":[1,{}]}"#), "histogram_quantile"),
            (r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#.into(), "a matrix"),
            (r#"{"status":"success"}"#.into(), "without data"),
            (r#"{"status":"error","errorType":"bad_data","error":"parse error\nat 3"}"#.into(), "bad_data: parse error at 3"),
            ("<html>".into(), "is the URL right?"),
        ] {
            let text = read(&body).unwrap_err().text();
            assert!(text.starts_with('Q') && text.contains(wanted), "{text}");
        }
    }
}
