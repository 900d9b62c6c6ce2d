//! Suggestions for misspelt names.

/// Of `known`, the name nearest to a misspelt `name`; `None` if none is near enough to suggest.
///
/// Near enough is one edit (insertion, deletion, substitution, swap of neighbours) for every three characters, and
/// at least one. Letter case does not count. Of names equally near, the first wins.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let limit = (name.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&name, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_finds_its_name_and_a_stranger_does_not() {
        let known = ["Convolution", "Deconvolution", "Pooling", "ReLU", "PReLU"];
        assert_eq!(nearest("Convolutoin", known), Some("Convolution"));
        assert_eq!(nearest("relu", known), Some("ReLU"));
        assert_eq!(nearest("Poling", known), Some("Pooling"));
        assert_eq!(nearest("Transformer", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("x", ["y"]), None);
    }
}
