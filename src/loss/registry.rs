//! Every loss, once: the only list of losses in this crate.

/// Calls `$callback!` with every loss: its module, type, name, one line of documentation, and
/// whether it is evaluated with a queue ([`QueueUse`](super::QueueUse)).
///
/// [`Loss`](super::Loss) and all that goes over losses come from this list; so do the methods that
/// evaluate one (`src/evaluate.rs`).
macro_rules! for_each_loss {
    ($callback:ident) => {
        $callback! {
            rkd_distance RkdDistance "rkd-distance" "RKD distance." Never;
            rkd_angle RkdAngle "rkd-angle" "RKD angle." Never;
            rkd Rkd "rkd" "RKD distance and angle, weighted." Never;
            sp Sp "sp" "Similarity-preserving distillation." Never;
            gram Gram "gram" "Gram anchoring: cosine similarities." Never;
            pkt Pkt "pkt" "Probabilistic knowledge transfer." Never;
            order Order "order" "The order of similarities." Never;
            dark_rank DarkRank "dark-rank" "The order of a row's neighbours: hard DarkRank." Never;
            rrd Rrd "rrd" "Relational representation distillation." Required;
            info_nce InfoNce "info-nce" "InfoNCE, in-batch or with a queue." Optional;
            clip Clip "clip" "CLIP with two trained towers, hard and soft." Never;
            sig_lip SigLip "siglip" "SigLIP: a sigmoid for each pair." Never;
            sup_con SupCon "sup-con" "Supervised contrastive learning; NT-Xent." Never;
            crd Crd "crd" "Contrastive representation distillation with a memory bank." Never;
            rrd_bank RrdBank "rrd-bank" "RRD with a memory bank." Never;
            kd_kl KdKl "kd-kl" "Hinton's distillation of logits." Never;
        }
    };
}
pub(crate) use for_each_loss;
