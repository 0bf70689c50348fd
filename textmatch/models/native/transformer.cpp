// The C interface: make a transformer from weights, run it on packed texts. Sources: Vaswani et al. 2017, Devlin et al. 2018;
// Intel 64 and IA-32 Architectures Software Developer's Manual, "Intel Advanced Matrix Extensions".

#include <sys/syscall.h>
#include <unistd.h>

#include <cpuid.h>

#include "encoder.h"
#include "thread_pool.h"

namespace {

constexpr size_t kPieceTokens = 192;  // their states and the weights fit into a core's second-level cache
constexpr long kRequestTileData = 0x1023, kTileDataFeature = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)

// The names in kernel.py are the same.
constexpr uint32_t kAvx512 = 1, kAvx512Bf16 = 2, kAmxBf16 = 4, kAmxPermission = 8;
#if defined(TEXTMATCH_EMULATED_AVX512)
constexpr uint32_t kNeededFeatures = 0;
#elif defined(TEXTMATCH_EMULATED_TILES)
constexpr uint32_t kNeededFeatures = kAvx512 | kAvx512Bf16;
#else
constexpr uint32_t kNeededFeatures = kAvx512 | kAvx512Bf16 | kAmxBf16 | kAmxPermission;
#endif

class Transformer {
  public:
    Transformer(const Shape& shape, const EmbeddingWeights& embedding, const LayerWeights* layers, size_t distinct_layers,
                size_t threads)
        : shape_(shape), embedding_(embedding), width_(round_up(shape.hidden, kBlock)),
          embedding_width_(round_up(shape.embedding, kBlock)), scratches_(threads), threads_(threads) {
        for (size_t layer = 0; layer < distinct_layers; ++layer)
            layers_.push_back(std::make_unique<Layer>(layers[layer], shape));
        norm_ = padded(embedding.norm, shape.embedding, embedding_width_);
        norm_bias_ = padded(embedding.norm_bias, shape.embedding, embedding_width_);
        if (embedding.projection == nullptr) return;
        const size_t narrow = shape.embedding;
        projection_ = PackedMatrix(narrow, shape.hidden,
                                   [&](size_t at, size_t column) { return embedding.projection[column * narrow + at]; });
        projection_bias_ = padded(embedding.projection_bias, shape.hidden, width_);
    }

    // `ids` and `types` are flat; text t has `lengths[t]` tokens from `starts[t]`. Its states go to the same positions of `out`,
    // rows of `hidden` floats.
    void run(const int64_t* ids, const int64_t* types, const int64_t* starts, const int64_t* lengths, size_t count,
             int64_t first_position, float* out) {
        const std::vector<size_t> bounds = pieces(lengths, count);
        threads_.run(bounds.size() - 1, [&](size_t thread, size_t piece) {
            const size_t from = bounds[piece];
            run_piece(scratches_[thread], ids, types, starts + from, lengths + from, bounds[piece + 1] - from,
                      first_position, out);
        });
    }

  private:
    // Pieces of whole texts with about equally many tokens, and about as many pieces for each thread.
    std::vector<size_t> pieces(const int64_t* lengths, size_t count) const {
        size_t tokens = 0;
        for (size_t text = 0; text < count; ++text) tokens += lengths[text];
        const size_t wanted = round_up((tokens + kPieceTokens - 1) / kPieceTokens, threads_.count());
        std::vector<size_t> bounds{0};
        size_t seen = 0;
        for (size_t text = 0; text < count; ++text) {
            seen += lengths[text];
            if (text + 1 == count || seen * wanted >= tokens * bounds.size()) bounds.push_back(text + 1);
        }
        return bounds;
    }

    void run_piece(Layer::Scratch& scratch, const int64_t* ids, const int64_t* types, const int64_t* starts,
                   const int64_t* lengths, size_t count, int64_t first_position, float* out) {
        std::vector<size_t> rows{0};
        for (size_t text = 0; text < count; ++text) rows.push_back(rows.back() + lengths[text]);
        fit(scratch, rows.back());
        const TileSession session;
        for (size_t text = 0; text < count; ++text)
            for (int64_t token = 0; token < lengths[text]; ++token)
                embed(ids[starts[text] + token], first_position + token, types[starts[text] + token],
                      scratch.states.data() + (rows[text] + token) * embedding_width_);
        begin(scratch, round_up(rows.back(), kTileRows));
        for (int64_t layer = 0; layer < shape_.layers; ++layer)
            layers_[std::min<size_t>(layer, layers_.size() - 1)]->run(scratch, rows.back(), rows);
        for (size_t text = 0; text < count; ++text)
            for (int64_t token = 0; token < lengths[text]; ++token)
                std::memcpy(out + (starts[text] + token) * shape_.hidden,
                            scratch.states.data() + (rows[text] + token) * width_, shape_.hidden * sizeof(float));
    }

    void fit(Layer::Scratch& scratch, size_t rows) const {
        const size_t tiled = round_up(rows, kTileRows) + kTileRows;  // attention reads beyond the last text
        const size_t widest = std::max(width_, embedding_width_);  // embeddings may be wider than the layers
        if (scratch.states.size() >= tiled * widest) return;
        const Layer& layer = *layers_.front();
        scratch.states.assign(tiled * widest, 0.0f);
        scratch.rounded.assign(tiled * widest, 0);
        scratch.qkv.assign(tiled * layer.qkv_width(), 0);
        scratch.context.assign(tiled * layer.heads_width(), 0);
        scratch.inner.assign(tiled * layer.inner_width(), 0);
    }

    void embed(int64_t id, int64_t position, int64_t type, float* to) const {
        const size_t columns = shape_.embedding;
        const uint16_t* word = embedding_.words + id * columns;
        const uint16_t* place = embedding_.positions + position * columns;
        const uint16_t* kind = embedding_.types ? embedding_.types + type * columns : nullptr;
        for (size_t at = 0; at < embedding_width_; at += kFloats) {
            const __mmask16 lanes = first_lanes(columns - at);
            const auto load = [&](const uint16_t* from) {
                return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, from + at));
            };
            __m512 sum = _mm512_add_ps(load(word), load(place));
            if (kind) sum = _mm512_add_ps(sum, load(kind));
            _mm512_storeu_ps(to + at, sum);
        }
    }

    // Converts sums of embeddings to the first layer's input.
    void begin(Layer::Scratch& scratch, size_t rows) const {
        normalise(scratch.states.data(), scratch.rounded.data(), rows, shape_.embedding, embedding_width_, norm_.data(),
                  norm_bias_.data(), shape_.norm_epsilon);
        if (projection_bias_.empty()) return;
        const Lines<bf16> narrow(scratch.rounded.begin(), scratch.rounded.begin() + rows * embedding_width_);
        multiply(narrow.data(), rows, projection_, projection_.depth(), [&](size_t row, size_t count, size_t column, const float* sums, bool) {
            for (size_t at = 0; at < count; ++at)
                for (size_t half = 0; half < kBlock; half += kFloats) {
                    const __m512 value = _mm512_add_ps(_mm512_load_ps(sums + at * kBlock + half),
                                                       _mm512_loadu_ps(projection_bias_.data() + column + half));
                    const size_t place = (row + at) * width_ + column + half;
                    _mm512_storeu_ps(scratch.states.data() + place, value);
                    store_bf16(scratch.rounded.data() + place, value);
                }
        });
    }

    Shape shape_;
    EmbeddingWeights embedding_;
    size_t width_, embedding_width_;
    Lines<float> norm_, norm_bias_, projection_bias_;
    PackedMatrix projection_;
    std::vector<std::unique_ptr<Layer>> layers_;
    std::vector<Layer::Scratch> scratches_;
    ThreadPool threads_;
};

}  // namespace

extern "C" {

uint32_t textmatch_needed_features() { return kNeededFeatures; }

// The features of the processor and the operating system. Requests permission to use tiles.
uint32_t textmatch_present_features() {
    unsigned a, b, c, d;
    uint32_t present = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return present;
    if ((b >> 16 & 1) && (b >> 30 & 1) && (b >> 31 & 1)) present |= kAvx512;  // F, BW, VL
    if ((d >> 22 & 1) && (d >> 24 & 1)) present |= kAmxBf16;                  // AMX-BF16, AMX-TILE
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1)) present |= kAvx512Bf16;
    if (syscall(SYS_arch_prctl, kRequestTileData, kTileDataFeature) == 0) present |= kAmxPermission;
    return present;
}

// `layers` holds `distinct_layers`; if the shape has more, the last one is run again. The tables must outlive it.
void* textmatch_create(const Shape* shape, const EmbeddingWeights* embedding, const LayerWeights* layers,
                       int64_t distinct_layers, int64_t threads) {
    return new Transformer(*shape, *embedding, layers, distinct_layers, threads);
}

void textmatch_run(void* transformer, const int64_t* ids, const int64_t* types, const int64_t* starts,
                   const int64_t* lengths, int64_t count, int64_t first_position, float* out) {
    static_cast<Transformer*>(transformer)->run(ids, types, starts, lengths, count, first_position, out);
}

void textmatch_destroy(void* transformer) { delete static_cast<Transformer*>(transformer); }
}
