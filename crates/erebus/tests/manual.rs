//! x
use std::time::Instant;
#[tokio::test(flavor = "multi_thread")]
async fn manual() {
    let out = std::path::Path::new("/tmp/er/out");
    let _ = std::fs::remove_dir_all(out);
    let blobs = blobs::BlobStore::open(out.join("blobs")).unwrap();
    let t = Instant::now();
    let made =
        erebus::images::import(&blobs, tokio::fs::File::open("/tmp/exp/rootfs.tar").await.unwrap()).await.unwrap();
    println!("image {made:?} {:?}", t.elapsed());
    std::fs::copy(blobs.path(&made.digest).unwrap(), "/tmp/er/base.sqfs").unwrap();
    let kernels = erebus::kernels::KernelStore::open(out.join("kernels")).unwrap();
    let t = Instant::now();
    let k = kernels.import(tokio::fs::File::open("/tmp/er/kernel.tar").await.unwrap()).await.unwrap();
    println!("kernel {k:?} {:?}", t.elapsed());
    let t = Instant::now();
    let i = kernels.initramfs(&k.digest, &std::fs::read("/tmp/er/guest").unwrap()).unwrap();
    println!("initramfs {i:?} {:?} {}", t.elapsed(), std::fs::metadata(&i).unwrap().len());
    std::fs::copy(i, "/tmp/er/initramfs").unwrap();
    std::fs::copy(kernels.get(&k.digest).unwrap().vmlinuz, "/tmp/er/vmlinuz").unwrap();
    let layers = erebus::lethe::Layers::open(out.join("layers")).unwrap();
    let _ = std::fs::remove_file("/tmp/er/layer");
    println!("{:?}", layers.make(1024, std::path::Path::new("/tmp/er/layer")));
    if let Ok(tars) = std::env::var("TARS") {
        for tar in tars.split(' ') {
            let t = Instant::now();
            let r = erebus::images::import(&blobs, tokio::fs::File::open(tar).await.unwrap()).await;
            println!("{tar}: {r:?} {:?}", t.elapsed());
        }
    }
}
