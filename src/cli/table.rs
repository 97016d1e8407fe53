//! Aligned columns and readable numbers.

/// Where a column's cells go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Columns under their headings; a column without any content is left out.
pub(crate) fn render(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, (heading, _))| match rows.iter().map(|row| width(&row[i])).max() {
            None | Some(0) => 0,
            Some(widest) => widest.max(width(heading)),
        })
        .collect();
    let headings = columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for ((cell, (_, align)), &all) in row.iter().zip(columns).zip(&widths) {
            if all == 0 {
                continue;
            }
            let padding = " ".repeat(all.saturating_sub(width(cell)));
            let (before, after) = match align {
                Align::Left => ("", &padding[..]),
                Align::Right => (&padding[..], ""),
            };
            line.extend([before, cell, after, "  "]);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `20 B`, `17.0 KiB`.
pub(crate) fn bytes(n: u64) -> String {
    let mut size = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1023.95 {
            return if unit == "B" { format!("{n} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

/// A number in scientific notation, or a dash of none.
pub(crate) fn small(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3e}"))
}

/// Two places, or a dash of none.
pub(crate) fn fixed(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_an_empty_one_disappears() {
        let columns = [("name", Align::Left), ("none", Align::Left), ("n", Align::Right)];
        let rows = [["a", "", "100"], ["long name", "", "1"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(render(&columns, &rows), "name         n\na          100\nlong name    1\n");
    }

    #[test]
    fn sizes_keep_one_unit() {
        let sizes = [0, 1023, 1024, 17408, 1_048_575, 1 << 20, 5 << 30, 3 << 40].map(bytes);
        let expected = ["0 B", "1023 B", "1.0 KiB", "17.0 KiB", "1.0 MiB", "1.0 MiB", "5.0 GiB", "3.0 TiB"];
        assert_eq!(sizes, expected);
    }
}
