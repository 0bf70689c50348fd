// A BERT-like transformer encoder (post-norm) over concatenated texts without padding.
#pragma once

#include <cmath>
#include <memory>

#include "attention.h"

// The arguments from Python. Arrays are float32, matrices are (outputs, inputs) as in torch.
struct LayerWeights {
    const float *query, *query_bias, *key, *key_bias, *value, *value_bias;  // (hidden, hidden)
    const float *output, *output_bias;                                      // (hidden, hidden)
    const float *attention_norm, *attention_norm_bias;
    const float *up, *up_bias;      // (inner, hidden)
    const float *down, *down_bias;  // (hidden, inner)
    const float *norm, *norm_bias;
};

struct Shape {
    int64_t hidden, heads, inner, layers, embedding;
    Activation activation;
    float norm_epsilon;
};

// Tables are float16, (entries, embedding). `types` and the projection may be missing.
struct EmbeddingWeights {
    const uint16_t *words, *positions, *types;
    const float *norm, *norm_bias;
    const float *projection, *projection_bias;  // (hidden, embedding), where the embedding is narrower
};

// A vector of the length of padded rows: zeros after its values.
inline Lines<float> padded(const float* values, size_t count, size_t width) {
    Lines<float> copy(width, 0.0f);
    std::copy(values, values + count, copy.begin());
    return copy;
}

// (tokens, columns) -> normalised in place, and as bfloat16. Rows are `width` apart; columns beyond stay zero.
inline void normalise(float* states, bf16* rounded, size_t rows, size_t columns, size_t width, const float* scale,
                      const float* shift, float epsilon) {
    const float part = 1.0f / static_cast<float>(columns);
    for (size_t row = 0; row < rows; ++row, states += width, rounded += width) {
        __m512 total = _mm512_setzero_ps();
        for (size_t at = 0; at < width; at += kFloats) total = _mm512_add_ps(total, _mm512_loadu_ps(states + at));
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) * part);
        __m512 squares = _mm512_setzero_ps();
        for (size_t at = 0; at < width; at += kFloats) {
            const __m512 centred = _mm512_maskz_sub_ps(first_lanes(columns - at), _mm512_loadu_ps(states + at), mean);
            squares = _mm512_fmadd_ps(centred, centred, squares);
        }
        const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) * part + epsilon));
        for (size_t at = 0; at < width; at += kFloats) {
            const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(states + at), mean);
            // Scale and shift are zero after the last column, and so is the result.
            const __m512 result = _mm512_fmadd_ps(_mm512_mul_ps(centred, factor), _mm512_loadu_ps(scale + at),
                                                  _mm512_loadu_ps(shift + at));
            _mm512_storeu_ps(states + at, result);
            store_bf16(rounded + at, result);
        }
    }
}

class Layer {
  public:
    Layer(const LayerWeights& from, const Shape& shape)
        : shape_(shape), width_(round_up(shape.hidden, kBlock)), inner_width_(round_up(shape.inner, kBlock)) {
        const size_t hidden = shape.hidden, heads = shape.heads, inner = shape.inner;
        const size_t head_size = hidden / heads;
        head_width_ = round_up(head_size, kTileDepth);
        heads_width_ = heads * head_width_;
        const float scale = 1.0f / std::sqrt(static_cast<float>(head_size));
        const float* const parts[3] = {from.query, from.key, from.value};
        const float* const biases[3] = {from.query_bias, from.key_bias, from.value_bias};
        // Column -> row of the torch matrix; heads are padded to whole tiles.
        const auto source = [=, this](size_t column) -> ptrdiff_t {
            const size_t head = column % heads_width_ / head_width_, at = column % head_width_;
            return at < head_size ? static_cast<ptrdiff_t>(head * head_size + at) : -1;
        };
        qkv_ = PackedMatrix(hidden, 3 * heads_width_, [&](size_t at, size_t column) {
            const size_t part = column / heads_width_;
            const ptrdiff_t row = source(column);
            return row < 0 ? 0.0f : parts[part][row * hidden + at] * (part == 0 ? scale : 1.0f);
        });
        qkv_bias_.assign(qkv_.columns(), 0.0f);
        for (size_t column = 0; column < 3 * heads_width_; ++column)
            if (const ptrdiff_t row = source(column); row >= 0)
                qkv_bias_[column] = biases[column / heads_width_][row] * (column < heads_width_ ? scale : 1.0f);
        output_ = PackedMatrix(heads_width_, hidden, [&](size_t at, size_t column) {
            const ptrdiff_t input = source(at);
            return input < 0 ? 0.0f : from.output[column * hidden + input];
        });
        up_ = PackedMatrix(hidden, inner, [&](size_t at, size_t column) { return from.up[column * hidden + at]; });
        down_ = PackedMatrix(inner, hidden, [&](size_t at, size_t column) { return from.down[column * inner + at]; });
        output_bias_ = padded(from.output_bias, hidden, width_);
        up_bias_ = padded(from.up_bias, inner, inner_width_);
        down_bias_ = padded(from.down_bias, hidden, width_);
        attention_norm_ = padded(from.attention_norm, hidden, width_);
        attention_norm_bias_ = padded(from.attention_norm_bias, hidden, width_);
        norm_ = padded(from.norm, hidden, width_);
        norm_bias_ = padded(from.norm_bias, hidden, width_);
    }

    size_t qkv_width() const { return qkv_.columns(); }
    size_t heads_width() const { return heads_width_; }
    size_t inner_width() const { return inner_width_; }

    // Buffers of one thread. Rows are padded, because tiles read beyond the last token.
    struct Scratch {
        Lines<float> states;
        Lines<bf16> rounded, qkv, context, inner;
        AttentionScratch attention;
    };

    // `rows` tokens of whole texts: states in, states out. `starts` are the texts' first rows.
    void run(Scratch& scratch, size_t rows, const std::vector<size_t>& starts) const {
        float* states = scratch.states.data();
        bf16* rounded = scratch.rounded.data();
        bf16* qkv = scratch.qkv.data();
        bf16* context = scratch.context.data();
        bf16* inner = scratch.inner.data();
        const size_t tiled = round_up(rows, kTileRows);
        multiply(rounded, tiled, qkv_, qkv_.depth(), [&](size_t row, size_t count, size_t column, const float* sums, bool) {
            store_rounded(sums, count, qkv_bias_.data() + column, qkv + row * qkv_width() + column, qkv_width(),
                          [](__m512 value) { return value; });
        });
        for (size_t text = 0; text + 1 < starts.size(); ++text) {
            const bf16* from = qkv + starts[text] * qkv_width();
            attend({from, from + heads_width_, from + 2 * heads_width_, qkv_width(), context + starts[text] * heads_width_,
                    heads_width_, starts[text + 1] - starts[text], head_width_},
                   shape_.heads, scratch.attention);
        }
        multiply(context, tiled, output_, kDepthSpan, [&](size_t row, size_t count, size_t column, const float* sums, bool is_first) {
            add(sums, count, is_first ? output_bias_.data() + column : nullptr, states + row * width_ + column);
        });
        normalise(states, rounded, tiled, shape_.hidden, width_, attention_norm_.data(), attention_norm_bias_.data(),
                  shape_.norm_epsilon);
        switch (shape_.activation) {
            case Activation::kGeluErf: feed_forward<Activation::kGeluErf>(rounded, inner, tiled); break;
            case Activation::kGeluTanh: feed_forward<Activation::kGeluTanh>(rounded, inner, tiled); break;
            case Activation::kRelu: feed_forward<Activation::kRelu>(rounded, inner, tiled); break;
        }
        multiply(inner, tiled, down_, kDepthSpan, [&](size_t row, size_t count, size_t column, const float* sums, bool is_first) {
            add(sums, count, is_first ? down_bias_.data() + column : nullptr, states + row * width_ + column);
        });
        normalise(states, rounded, tiled, shape_.hidden, width_, norm_.data(), norm_bias_.data(), shape_.norm_epsilon);
    }

  private:
    template <Activation kind>
    void feed_forward(const bf16* rounded, bf16* inner, size_t rows) const {
        multiply(rounded, rows, up_, up_.depth(), [&](size_t row, size_t count, size_t column, const float* sums, bool) {
            store_rounded(sums, count, up_bias_.data() + column, inner + row * inner_width_ + column, inner_width_,
                          activate<kind>);
        });
    }

    template <class Function>
    static void store_rounded(const float* sums, size_t rows, const float* bias, bf16* to, size_t stride,
                              Function function) {
        const __m512 left = _mm512_loadu_ps(bias), right = _mm512_loadu_ps(bias + kFloats);
        for (size_t row = 0; row < rows; ++row, sums += kBlock, to += stride) {
            const __m512 low = function(_mm512_add_ps(_mm512_load_ps(sums), left));
            const __m512 high = function(_mm512_add_ps(_mm512_load_ps(sums + kFloats), right));
            _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
    }

    // The residual connection: adds to the states.
    void add(const float* sums, size_t rows, const float* bias, float* states) const {
        const __m512 left = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
        const __m512 right = bias ? _mm512_loadu_ps(bias + kFloats) : _mm512_setzero_ps();
        for (size_t row = 0; row < rows; ++row, sums += kBlock, states += width_) {
            const __m512 low = _mm512_add_ps(_mm512_load_ps(sums), left);
            const __m512 high = _mm512_add_ps(_mm512_load_ps(sums + kFloats), right);
            _mm512_storeu_ps(states, _mm512_add_ps(_mm512_loadu_ps(states), low));
            _mm512_storeu_ps(states + kFloats, _mm512_add_ps(_mm512_loadu_ps(states + kFloats), high));
        }
    }

    Shape shape_;
    size_t width_, inner_width_, head_width_, heads_width_;
    PackedMatrix qkv_, output_, up_, down_;
    Lines<float> qkv_bias_, output_bias_, up_bias_, down_bias_;
    Lines<float> attention_norm_, attention_norm_bias_, norm_, norm_bias_;
};
