//! URLs as people and logs may see them: without their passwords.
//!
//! Every program prints URLs of its settings (of Redis, of a store, of a receiver of spans), so there is one way for all.

/// What stands for a password that is not shown.
pub const MASK: &str = "***";

/// Whether a URL names a unix socket, whose path may hold an `@`.
pub fn is_socket(url: &str) -> bool {
    url.split(':').next().is_some_and(|scheme| scheme.ends_with("unix"))
}

/// A URL without its password.
///
/// It masks too much rather than too little. Everything up to the last `@` counts as user information,
/// since an unescaped `/` or `@` in a password would otherwise leave a part of it readable; for the same reason everything
/// after `pass=` is masked. A user without a password is masked, because it is most likely a password without a user.
pub fn masked(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let (user, host) = match rest.rsplit_once('@') {
        Some((user, host)) if !is_socket(url) => (mask_password(user), host),
        _ => (String::new(), rest),
    };
    let host = match host.split_once("pass=") {
        Some((before, _)) => format!("{before}pass={MASK}"),
        None => host.to_owned(),
    };
    format!("{scheme}{user}{host}")
}

fn mask_password(user_info: &str) -> String {
    match user_info.split_once(':') {
        Some((user, _)) => format!("{user}:{MASK}@"),
        None => format!("{MASK}@"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_part_of_a_password_is_left(
            scheme in "((redis|s3|https)://)?", user in "[a-z]{0,3}", before in "[-a-z@:/?#%&=+ ]{0,4}", after in "[-a-z@:/?#%&=+ ]{0,4}",
        ) {
            let url = format!("{scheme}{user}:{before}hunter{after}@host/path");
            let shown = masked(&url);
            prop_assert!(shown.contains(MASK) && shown.ends_with("@host/path") && !shown.contains("hunter"), "{}", shown);
            prop_assert_eq!(masked(&shown), shown.clone());
        }
    }

    #[test]
    fn a_url_without_a_password_stays_as_it_is() {
        for url in
            ["http://127.0.0.1:4318", "s3://bucket/prefix", "unix:///run/redis@1.sock?db=1", "/a/path", ""]
        {
            assert_eq!(masked(url), url);
        }
    }
}
