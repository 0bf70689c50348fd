// Runs the kernel on random weights. Compiled with sanitizers, it ends with an error if the kernel reads or writes
// memory that is not its own.
#include "../../../textmatch/models/native/transformer.cpp"

#include <cstdio>

namespace {

uint32_t state = 7;

// The header <random> includes intrinsics, which are emulated here.
uint32_t next() {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

// Each array has exactly the size that the kernel is told: the sanitizer sees a read beyond its end.
std::vector<std::unique_ptr<std::vector<float>>> floats;
std::vector<std::unique_ptr<std::vector<uint16_t>>> halves;

const float* weights(size_t count) {
    floats.push_back(std::make_unique<std::vector<float>>(count));
    for (float& value : *floats.back()) value = static_cast<float>(next() % 2001) * 2e-4f - 0.2f;
    return floats.back()->data();
}

const uint16_t* table(size_t count) {
    halves.push_back(std::make_unique<std::vector<uint16_t>>(count));
    for (uint16_t& value : *halves.back()) value = static_cast<uint16_t>(next() % 0x3800);  // 0 to 0.5
    return halves.back()->data();
}

bool run(Shape shape, size_t distinct_layers, bool has_types, size_t threads) {
    constexpr size_t kEntries = 300;
    const size_t hidden = shape.hidden, inner = shape.inner, embedding = shape.embedding;
    EmbeddingWeights tables{table(kEntries * embedding), table(kEntries * embedding),
                            has_types ? table(2 * embedding) : nullptr, weights(embedding), weights(embedding), nullptr,
                            nullptr};
    if (hidden != embedding) {
        tables.projection = weights(hidden * embedding);
        tables.projection_bias = weights(hidden);
    }
    std::vector<LayerWeights> layers;
    for (size_t layer = 0; layer < distinct_layers; ++layer)
        layers.push_back({weights(hidden * hidden), weights(hidden), weights(hidden * hidden), weights(hidden),
                          weights(hidden * hidden), weights(hidden), weights(hidden * hidden), weights(hidden),
                          weights(hidden), weights(hidden), weights(inner * hidden), weights(inner),
                          weights(hidden * inner), weights(hidden), weights(hidden), weights(hidden)});
    void* transformer = textmatch_create(&shape, &tables, layers.data(), distinct_layers, threads);
    bool is_finite = true;
    // From small to large, because buffers grow, and back.
    for (const std::vector<int64_t> lengths : {std::vector<int64_t>{1}, {3}, {16, 1, 17}, {31}, {5, 33, 200, 2, 15}, {7}}) {
        int64_t tokens = 0;
        std::vector<int64_t> starts;
        for (int64_t length : lengths) {
            starts.push_back(tokens);
            tokens += length;
        }
        std::vector<int64_t> ids(tokens), types(tokens);
        for (int64_t& id : ids) id = next() % kEntries;
        for (int64_t& type : types) type = next() % 2;
        std::vector<float> states(tokens * hidden);
        textmatch_run(transformer, ids.data(), types.data(), starts.data(), lengths.data(), lengths.size(), 2, states.data());
        for (float state : states) is_finite = is_finite && std::isfinite(state);
    }
    textmatch_destroy(transformer);
    return is_finite;
}

}  // namespace

int main() {
    const Shape shapes[] = {
        {64, 2, 128, 2, 64, Activation::kGeluErf, 1e-12f},
        {78, 3, 100, 2, 40, Activation::kGeluTanh, 1e-12f},   // widths that end within a tile, a narrow embedding
        {32, 2, 64, 2, 160, Activation::kRelu, 1e-12f},       // an embedding that is wider than the layers
    };
    for (const Shape& shape : shapes)
        for (const size_t threads : {1, 2})
            if (!run(shape, shape.embedding == shape.hidden ? 2 : 1, threads == 1, threads)) {
                std::puts("a state is not finite");
                return 1;
            }
    std::puts("done");
    return 0;
}
