#[cfg(races="loom")]
fn main() {
    let name = std::env::args().nth(1);
    for m in eventplane::models::all() {
        if name.as_ref().is_some_and(|n| n != m.name) { continue; }
        let t = std::time::Instant::now();
        let n = m.explore(None);
        println!("{} {} {:?}", m.name, n, t.elapsed());
    }
}
#[cfg(not(races="loom"))]
fn main(){}
