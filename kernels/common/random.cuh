// Random numbers: Philox4x32-10 (Salmon et al., 2011). The words are those of `lgm_core::rng::Philox`.

struct Words {
    u32 w[4];
};

DEVICE Words philox(u64 seed, u64 stream, u64 counter) {
    u32 c0 = (u32)counter, c1 = (u32)(counter >> 32), c2 = (u32)stream, c3 = (u32)(stream >> 32);
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0;
        c1 = (u32)p1;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c3 = (u32)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    Words out = {{c0, c1, c2, c3}};
    return out;
}

// When a step is, as six words tell: seed, iteration and batch, the low word of each first.
DEVICE u64 clock_seed(const u32* clock) { return clock[0] | (u64)clock[1] << 32; }
DEVICE u64 clock_iteration(const u32* clock) { return clock[2] | (u64)clock[3] << 32; }
DEVICE u64 clock_batch(const u32* clock) { return clock[4] | (u64)clock[5] << 32; }
