//! Columns as the Go programs print them: as wide as their widest cell, three spaces at least between two.

const GAP: usize = 3;
const NARROWEST: usize = 12;

/// Print `rows` under `header`.
pub(super) fn print<const N: usize>(header: [&str; N], rows: &[[String; N]]) {
    print!("{}", text(header, rows));
}

fn text<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let header = header.map(str::to_owned);
    let lines = || std::iter::once(&header).chain(rows);
    let width = |column: usize| {
        lines()
            .map(|row| row[column].chars().count() + GAP)
            .max()
            .unwrap_or(0)
            .max(NARROWEST)
    };
    let mut text = String::new();
    for row in lines() {
        for (column, cell) in row.iter().enumerate() {
            match column + 1 == N {
                true => text.push_str(cell),
                false => text.push_str(&format!("{cell:<0$}", width(column))),
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a-rather-long-name".to_owned(), "1".to_owned()]];
        assert_eq!(
            text(["ID", "PID"], &rows),
            "ID                   PID\na-rather-long-name   1\n"
        );
    }
}
