//! The page in headless Chromium.

use super::demo;
use sar_train::report;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Chromium is, by the names that distributions give it.
fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&paths);
    named.or_else(|| {
        folders.find_map(|folder| {
            let names = ["chromium", "chromium-browser", "google-chrome"];
            names.iter().map(|n| folder.join(n)).find(|p| p.is_file())
        })
    })
}

/// Runs Chromium on a page and gives what it wrote to stdout and stderr.
fn browse(chromium: &Path, page: &Path, extra: &[String]) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(extra)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The number that the probe left in the page under a name.
fn probed(dom: &str, name: &str) -> u32 {
    let at = dom.find(&format!("{name}=\"")).unwrap_or_else(|| panic!("no {name} in the page"));
    let value = dom[at + name.len() + 2..].split('"').next().unwrap();
    value.parse().unwrap_or_else(|_| panic!("{name} is '{value}'"))
}

/// The page in a frame of a given width, measured from outside: a window cannot be narrower than
/// 500 px, and the page itself allows no script.
fn framed(html: &str, width: u32, height: u32) -> String {
    let content = html.replace('&', "&amp;").replace('"', "&quot;");
    format!(
        "<!DOCTYPE html><body style=\"margin:0\"><iframe style=\"border:0;display:block\" \
         width=\"{width}\" height=\"{height}\" srcdoc=\"{content}\"></iframe><script>\
         addEventListener('load', () => {{\
         const w = frames[0], d = w.document, root = d.documentElement;\
         const set = (name, value) => document.body.setAttribute('data-' + name, value);\
         set('page', root.scrollWidth); set('window', w.innerWidth); set('height', root.scrollHeight);\
         set('broken', [...d.images].filter(i => !i.naturalWidth).length);\
         set('pictures', d.images.length);\
         const text = d.querySelector('figure svg text').getBoundingClientRect();\
         set('text', Math.round(text.height)); }});</script></body>"
    )
}

#[test]
fn chromium_shows_it_without_errors_or_sideways_scrolling() {
    let Some(chromium) = chromium() else {
        eprintln!("SKIPPED: no Chromium on this machine; install the Debian package `chromium`");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let html = report::write(&[demo(folder.path())], &page).unwrap().html;
    let (_, log) = browse(&chromium, &page, &["--dump-dom".into()]);
    assert!(!log.contains("CONSOLE"), "console:\n{log}");

    let shots = std::env::var_os("SAR_SCREENSHOTS").map(PathBuf::from);
    for width in [400, 1400] {
        let frame = folder.path().join(format!("frame-{width}.html"));
        std::fs::write(&frame, framed(&html, width, 1000)).unwrap();
        let (dom, log) = browse(&chromium, &frame, &["--dump-dom".into()]);
        assert!(!log.contains("CONSOLE"), "console at {width} px:\n{log}");
        assert_eq!(probed(&dom, "data-window"), width, "the frame is not as wide as asked for");
        assert!(probed(&dom, "data-page") <= width, "scrolls sideways at {width} px");
        assert_eq!(probed(&dom, "data-pictures"), 5);
        assert_eq!(probed(&dom, "data-broken"), 0, "pictures that do not load");
        assert!(probed(&dom, "data-text") >= 11, "chart text too small at {width} px");

        // To look at: SAR_SCREENSHOTS names a folder.
        if let Some(shots) = &shots {
            let height = probed(&dom, "data-height");
            std::fs::write(&frame, framed(&html, width, height)).unwrap();
            let shot = shots.join(format!("report-{width}.png"));
            let size = format!("--window-size={},{height}", width.max(500));
            browse(&chromium, &frame, &[size, format!("--screenshot={}", shot.display())]);
            assert!(image::image_dimensions(&shot).unwrap().1 >= 1000);
        }
    }
}
