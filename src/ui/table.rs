//! Columns: every cell but a row's last is padded to its column's widest.

/// Lays out rows. Cells are plain text; `paint` colours a padded cell, given its row and column.
pub fn lay_out(rows: &[Vec<String>], paint: impl Fn(usize, usize, &str) -> String) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (r, row) in rows.iter().enumerate() {
        let last = row.iter().rposition(|cell| !cell.is_empty()).unwrap_or(0);
        for (c, cell) in row.iter().enumerate().take(last + 1) {
            if c > 0 {
                out.push_str("  ");
            }
            let padded = if c == last { cell.clone() } else { format!("{cell:<width$}", width = widths[c]) };
            out.push_str(&paint(r, c, &padded));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".into(), "bb".into(), "c".into()], vec!["ééé".into(), String::new(), String::new()]];
        assert_eq!(lay_out(&rows, |_, _, s| s.to_owned()), "a    bb  c\nééé\n");
        assert_eq!(lay_out(&[], |_, _, s| s.to_owned()), "");
    }
}
