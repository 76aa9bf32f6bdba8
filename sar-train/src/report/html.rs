//! Escaping, and the few pieces of HTML that several sections share.

use std::borrow::Cow;

/// Escapes text for HTML, in an element or a quoted attribute.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Keeps a number and its spread or unit on one line.
pub(super) fn unbroken(text: &str) -> String {
    text.replace(" ± ", "\u{a0}±\u{a0}").replace(" %", "\u{a0}%").replace(" MiB", "\u{a0}MiB")
}

/// Returns a section with a heading; empty if there is no body.
pub(super) fn section(title: &str, body: &str) -> String {
    if body.is_empty() {
        return String::new();
    }
    format!("<section>\n<h2>{}</h2>\n{body}</section>\n", escape(title))
}

/// Returns a paragraph; empty if there is no text.
pub(super) fn paragraph(class: &str, text: &str) -> String {
    match text.trim() {
        "" => String::new(),
        text => format!("<p class=\"{class}\">{}</p>\n", escape(text)),
    }
}

/// Returns a list; empty if there are no items.
pub(super) fn list(class: &str, items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: String = items.iter().map(|i| format!("<li>{}</li>\n", escape(i))).collect();
    format!("<ul class=\"{class}\">\n{items}</ul>\n")
}

/// Returns a table in a box that scrolls if it is too wide for the page.
///
/// The first cell of each row is its heading.
pub(super) fn table(label: &str, head: &[String], rows: &[Vec<Cell>]) -> String {
    let mut out = format!(
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\"><table>\n<thead><tr>",
        escape(label)
    );
    for cell in head {
        out.push_str(&format!("<th scope=\"col\">{}</th>", escape(cell)));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for (i, cell) in row.iter().enumerate() {
            let (text, class) =
                (escape(&cell.text), if cell.best { " class=\"best\"" } else { "" });
            out.push_str(&match i {
                0 => format!("<th scope=\"row\">{text}</th>"),
                _ => format!("<td{class}>{text}</td>"),
            });
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

/// One cell of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    best: bool,
}

impl Cell {
    /// Creates a cell with this text; a dash if it is empty.
    pub(super) fn new(text: impl Into<String>) -> Self {
        let text = unbroken(&text.into());
        Self { text: if text.is_empty() { "–".into() } else { text }, best: false }
    }

    /// Creates a cell for a value that may be missing.
    pub(super) fn of<T>(value: Option<T>, text: impl Fn(T) -> String) -> Self {
        Self::new(value.map(text).unwrap_or_default())
    }

    /// Marks the best of a column.
    pub(super) fn best(self, best: bool) -> Self {
        Self { best, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_a_file_is_markup() {
        assert_eq!(escape("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&#39;");
        let evil = "<script>alert(1)</script>";
        let all = section(evil, &paragraph("x", evil))
            + &list("x", &[evil.into()])
            + &table(evil, &[evil.into()], &[vec![Cell::new(evil), Cell::new(evil)]]);
        assert!(!all.contains("<script"), "{all}");
        // Heading, paragraph, list, the table's label and head, and two cells.
        assert_eq!(all.matches("&lt;script&gt;").count(), 7);
    }

    #[test]
    fn empty_pieces_leave_nothing() {
        assert_eq!(section("a", "") + &paragraph("", " ") + &list("", &[]), "");
        assert_eq!(Cell::of(None::<f64>, |v| v.to_string()).text, "–");
    }
}
