//! What the controller is told of `[vars]`: digests, so that the configurations of
//! environments are compared without travelling.

use std::collections::BTreeMap;

use tidegate_protocol::limits::VARS_MAX;
use tidegate_protocol::{Digest, VarDigest};

/// Longer names are left out: all that are told must fit one frame.
const NAME_BYTES_MAX: usize = 256;

/// One per name, in order of name.
#[must_use]
pub fn digests(vars: &BTreeMap<String, String>) -> Vec<VarDigest> {
    let told: Vec<VarDigest> = vars
        .iter()
        .filter(|(name, _)| name.len() <= NAME_BYTES_MAX)
        .take(VARS_MAX)
        .map(|(name, value)| VarDigest { name: name.clone(), digest: Digest::of(format!("{name}={value}").as_bytes()) })
        .collect();
    if told.len() < vars.len() {
        tracing::warn!(
            told = told.len(),
            of = vars.len(),
            "not every name in [vars] is compared between environments: at most {VARS_MAX}, of {NAME_BYTES_MAX} bytes"
        );
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::codec::encode;
    use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
    use tidegate_protocol::message::ToController;

    #[test]
    fn a_digest_is_of_name_and_value_and_the_most_of_them_fit_a_frame() {
        let vars: BTreeMap<String, String> = [("port".to_owned(), "8081".to_owned())].into();
        assert_eq!(digests(&vars), [VarDigest { name: "port".into(), digest: Digest::of(b"port=8081") }]);
        let name = |i: usize| format!("{i:0>256}");
        let mut many: BTreeMap<String, String> = (0..VARS_MAX + 5).map(|i| (name(i), String::new())).collect();
        many.insert("a".repeat(257), String::new());
        let told = digests(&many);
        assert_eq!(told.len(), VARS_MAX);
        encode(&ToController::Vars(told), CONTROL_FRAME_BYTES_MAX).unwrap();
    }
}
