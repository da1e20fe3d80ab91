// The Python module: checks what comes in, and hands it to the model without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cfenv>
#include <memory>
#include <stdexcept>
#include <unordered_map>

#include "model.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitskip {
namespace {

using Codes = nb::ndarray<const uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using AnyRows = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr const char* NOT_FINITE =
    "an activation is infinite or not a number: the weights lead out of the range of float32";

const Kernels& find_kernels(const std::string& name) {
    if (name == "auto") return fastest_kernels();
    for (int i = 0; i < NUM_ISAS; i++)
        if (name == ISAS[i].kernels->name && ISAS[i].runs_here()) return *ISAS[i].kernels;
    throw std::invalid_argument("instruction set " + name + " cannot run here");
}

std::vector<std::string> runnable_isas() {
    std::vector<std::string> names;
    for (int i = 0; i < NUM_ISAS; i++)
        if (ISAS[i].runs_here()) names.emplace_back(ISAS[i].kernels->name);
    return names;
}

std::vector<float> padded(const Floats& values, int size, const char* what) {
    if (int(values.shape(0)) != size) throw std::invalid_argument(std::string(what) + ": wrong size");
    std::vector<float> out(values.data(), values.data() + size);
    out.resize(round_up(size, LANES), 0.0f);
    return out;
}

long to_long(PyObject* object, const char* what) {
    int overflow = 0;
    const long value = PyLong_AsLongAndOverflow(object, &overflow);
    if (value == -1 && PyErr_Occurred()) throw nb::python_error();
    if (overflow) throw std::invalid_argument(std::string(what) + " is out of range");
    return value;
}

// An integer that fits an int; `what` names the culprit.
int to_int(PyObject* object, const char* what) {
    const long value = to_long(object, what);
    if (value != int(value)) throw std::invalid_argument(std::string(what) + " is out of range");
    return int(value);
}

// The low bits of an integer of any size.
uint64_t to_bits(PyObject* object) {
    const uint64_t bits = PyLong_AsUnsignedLongLongMask(object);
    if (bits == ~uint64_t(0) && PyErr_Occurred()) throw nb::python_error();
    return bits;
}

double to_double(PyObject* object) {
    const double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred()) throw nb::python_error();
    return value;
}

// Sizes whose products, as the model forms them, fit the integers that hold them.
Shape checked(const Shape& shape) {
    for (int size : {shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim,
                     shape.ffn, shape.vocab, shape.positions})
        if (size < 1 || size > 1 << 24) throw std::invalid_argument("a size is out of range");
    if (shape.heads % shape.kv_heads || shape.head_dim % 2 ||
        int64_t(shape.heads) * round_up(shape.head_dim, LANES) > 1 << 24)
        throw std::invalid_argument("heads of a wrong number or size");
    if (shape.activation_max < 1 || shape.activation_max > 127)
        throw std::invalid_argument("activation_max must lie in 1..127");
    if (shape.hadamard != Hadamard::none)
        for (int size : {shape.hidden, shape.q_size(), shape.kv_size(), shape.ffn})
            // Transformed integers are held in floats, which are exact below 2²⁴.
            if (size & (size - 1) || int64_t(shape.activation_max) * size >= 1 << 24)
                throw std::invalid_argument("a width that cannot be transformed");
    return shape;
}

template <class T>
T named(const char* what, const std::string& name,
        std::initializer_list<std::pair<const char*, T>> choices) {
    for (const auto& [known, value] : choices)
        if (name == known) return value;
    throw std::invalid_argument(std::string(what) + " " + name + " does not exist");
}

// What dense weights are to be held in; of float32, they stay as they are.
Dtype dense_dtype(const std::string& name) {
    return named<Dtype>("dtype", name, {{"fp32", Dtype::float32}, {"bf16", Dtype::bfloat16},
                                        {"int8", Dtype::int8}});
}

Linears linears_of(const std::string& dtype) {
    if (dtype == "ternary") return Linears::ternary;
    return dense_dtype(dtype) == Dtype::int8 ? Linears::int8 : Linears::floats;
}

Hadamard hadamard_of(const std::string& name) {
    return named<Hadamard>("hadamard", name, {{"none", Hadamard::none},
                                              {"before", Hadamard::before},
                                              {"after", Hadamard::after}});
}

// The scope of one call: there is one at a time, and the floating-point environment is the
// default's, since a caller that flushes denormals to zero must not change a bit.
class Call {
public:
    explicit Call(bool& busy) : busy_(busy) {
        if (busy) throw std::runtime_error("another thread is using this model");
        busy = true;
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~Call() {
        std::fesetenv(&before_);
        busy_ = false;
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

private:
    bool& busy_;  // read and written under the GIL
    std::fenv_t before_;
};

class Binding {
public:
    Binding(int layers, int hidden, int heads, int kv_heads, int head_dim, int ffn, int vocab,
            int positions, float eps, bool exit_norm, const std::string& linears,
            int activation_max, const std::string& hadamard, int threads, const std::string& isa)
        : kernels_(find_kernels(isa)),
          linears_(linears),
          model_(checked({layers, hidden, heads, kv_heads, head_dim, ffn, vocab, positions, eps,
                          exit_norm, linears_of(linears), activation_max, hadamard_of(hadamard)}),
                 kernels_, threads) {}

    const char* isa() const { return kernels_.name; }

    void set_ternary_layer(int index, const Floats& attention_norm, const Floats& ffn_norm,
                           const std::vector<Codes>& codes, const std::vector<float>& scales) {
        if (model_.shape().linears != Linears::ternary)
            throw std::invalid_argument("the linears are dense");
        if (codes.size() != 7 || scales.size() != 7)
            throw std::invalid_argument("a layer has seven linears");
        set_layer(index, attention_norm, ffn_norm, [&](size_t linear, int inputs, int outputs) {
            const Codes& array = codes[linear];
            if (int(array.shape(0)) != pieces(outputs, QUAD) ||
                int(array.shape(1)) != pieces(inputs, BLOCK) || array.shape(2) != QUAD ||
                array.shape(3) != BLOCK / 4)
                throw std::invalid_argument("packed codes of a wrong shape");
            kept_codes_.push_back(nb::find(array));
            return Part{outputs, array.data(), scales[linear]};
        });
    }

    void set_dense_layer(int index, const Floats& attention_norm, const Floats& ffn_norm,
                         const std::vector<AnyRows>& weights) {
        if (model_.shape().linears == Linears::ternary)
            throw std::invalid_argument("the linears are ternary");
        if (weights.size() != 7) throw std::invalid_argument("a layer has seven linears");
        set_layer(index, attention_norm, ffn_norm, [&](size_t linear, int inputs, int outputs) {
            return Part{outputs, nullptr, 1.0f, held(weights[linear], outputs, inputs, linears_)};
        });
    }

    void set_final_norm(const Floats& gain) {
        model_.set_final_norm(padded(gain, model_.shape().hidden, "final norm"));
    }

    void set_rotary(const FloatRows& cos, const FloatRows& sin) {
        const Shape& shape = model_.shape();
        for (const FloatRows* table : {&cos, &sin})
            if (int(table->shape(0)) != shape.positions || int(table->shape(1)) != shape.head_dim / 2)
                throw std::invalid_argument("rotary table of a wrong shape");
        model_.set_rotary(cos.data(), sin.data());
    }

    void set_embedding(const AnyRows& rows) {
        const Shape& shape = model_.shape();
        model_.set_embedding(held(rows, shape.vocab, shape.hidden, "fp32"));
    }

    void set_head(const AnyRows& rows, const std::string& dtype) {
        const Shape& shape = model_.shape();
        model_.set_head(held(rows, shape.vocab, shape.hidden, dtype));
    }

    void set_draft_ids(const std::vector<int>& ids) {
        for (int id : ids)
            if (id < 0 || id >= model_.shape().vocab)
                throw std::invalid_argument("a draft id is not in the vocabulary");
        model_.set_draft_ids(ids);
    }

    void finish() {
        bool copied;
        {
            nb::gil_scoped_release release;
            copied = model_.finish();
        }
        if (copied) kept_codes_.clear();
    }

    void allocate(int blocks, int block_size, int states, const std::string& dtype) {
        if (blocks < 0 || block_size < 1 || states < 0)
            throw std::invalid_argument("K/V sizes must not be negative");
        if (dtype != "fp32" && dtype != "fp16" && dtype != "int8")
            throw std::invalid_argument("K/V dtype must be fp32, fp16 or int8, not " + dtype);
        const Call call(busy_);
        model_.allocate(blocks, block_size, states,
                        dtype == "fp32"   ? KvDtype::float32
                        : dtype == "fp16" ? KvDtype::float16
                                          : KvDtype::int8);
    }

    nb::object sweep(nb::sequence rows, nb::mapping block_tables) {
        const Call call(busy_);
        read_rows(rows, block_tables);
        const size_t hidden = model_.shape().hidden;
        auto out = std::make_unique<float[]>(rows_.size() * hidden);
        bool finite;
        {
            nb::gil_scoped_release release;
            finite = model_.sweep(rows_, tables_, out.get());
        }
        if (!finite) not_finite();
        float* data = out.release();
        nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(
            data, {rows_.size(), hidden}, owner));
    }

    nb::object logits(const FloatRows& residuals, nb::sequence rows, nb::sequence depths,
                      bool draft) {
        const Call call(busy_);
        const size_t count = read_picks(residuals, rows, depths);
        const size_t width = draft ? model_.draft_count() : model_.shape().vocab;
        auto out = std::make_unique<float[]>(count * width);
        bool finite;
        {
            nb::gil_scoped_release release;
            finite = model_.logits(sources_.data(), depths_.data(), int(count), draft, out.get());
        }
        if (!finite) not_finite();
        float* data = out.release();
        nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(data, {count, width}, owner));
    }

    nb::tuple pick(const FloatRows& residuals, nb::sequence rows, nb::sequence depths,
                   nb::sequence draws, bool draft) {
        const Call call(busy_);
        const size_t count = read_picks(residuals, rows, depths);
        if (nb::len(draws) != count) throw std::invalid_argument("one draw per row");
        if (draft && model_.draft_count() == 0)
            throw std::invalid_argument("the draft vocabulary is empty");
        draws_.clear();
        for (nb::handle entry : draws) {
            if (!PyTuple_Check(entry.ptr()) || PyTuple_GET_SIZE(entry.ptr()) != 3)
                throw std::invalid_argument("a draw is (temperature, seed, position)");
            const auto field = [&](int i) { return PyTuple_GET_ITEM(entry.ptr(), i); };
            const double temperature = to_double(field(0));
            if (!(temperature >= 0.0)) throw std::invalid_argument("temperature must not be negative");
            draws_.push_back({temperature, to_bits(field(1)), uint32_t(to_bits(field(2)))});
        }
        picks_.resize(count);
        bool finite;
        {
            nb::gil_scoped_release release;
            finite = model_.pick(sources_.data(), depths_.data(), draws_.data(), int(count), draft,
                                 picks_.data());
        }
        if (!finite) not_finite();
        nb::list ids, confidences;
        for (const Pick& pick : picks_) {
            ids.append(pick.id);
            confidences.append(pick.confidence);
        }
        return nb::make_tuple(ids, confidences);
    }

    nb::list kv_bytes(int layer, int block) const {
        if (layer < 0 || layer >= model_.shape().layers || block < 0 || block >= model_.block_count())
            throw std::invalid_argument("no such block");
        nb::list parts;
        for (const Model::Memory& part : model_.kv_memory(layer, block))
            parts.append(nb::bytes(part.data, part.bytes));
        return parts;
    }

    nb::bytes state_bytes(int state) const {
        if (state < 0 || state >= model_.state_count()) throw std::invalid_argument("no such state");
        return nb::bytes(reinterpret_cast<const char*>(model_.state(state)),
                         model_.shape().hidden * sizeof(float));
    }

private:
    [[noreturn]] static void not_finite() {
        PyErr_SetString(PyExc_FloatingPointError, NOT_FINITE);
        throw nb::python_error();
    }

    // part(linear, inputs, outputs) makes each of a layer's seven linears, in the order of the names.
    template <class F>
    void set_layer(int index, const Floats& attention_norm, const Floats& ffn_norm, F&& part) {
        const Shape& shape = model_.shape();
        if (index < 0 || index >= shape.layers) throw std::invalid_argument("no such layer");
        size_t next = 0;
        const auto matrix = [&](int inputs, std::initializer_list<int> outputs) {
            Matrix built;
            built.inputs = inputs;
            for (int size : outputs) built.add(part(next++, inputs, size));
            return built;
        };
        Layer layer;
        layer.qkv = matrix(shape.hidden, {shape.q_size(), shape.kv_size(), shape.kv_size()});
        layer.output = matrix(shape.q_size(), {shape.hidden});
        layer.gate_up = matrix(shape.hidden, {shape.ffn, shape.ffn});
        layer.down = matrix(shape.ffn, {shape.hidden});
        layer.attention_norm = padded(attention_norm, shape.hidden, "attention norm");
        layer.ffn_norm = padded(ffn_norm, shape.hidden, "feed-forward norm");
        model_.set_layer(index, std::move(layer));
    }

    // Rows of floats as a table of `dtype`: where they lie, or rounded into the model's own memory.
    Table held(const AnyRows& rows, int count, int width, const std::string& dtype) {
        if (int(rows.shape(0)) != count || int(rows.shape(1)) != round_up(width, LANES))
            throw std::invalid_argument("a matrix of a wrong shape");
        Table table{static_cast<const uint8_t*>(rows.data()), Dtype::float32, int(rows.shape(1))};
        const bool is_half = rows.dtype().code == uint8_t(nb::dlpack::dtype_code::Float) &&
                             rows.dtype().bits == 16;
        if (is_half) {
            table.dtype = Dtype::float16;
        } else if (rows.dtype() != nb::dtype<float>()) {
            throw std::invalid_argument("a matrix that is neither float32 nor float16");
        }
        const Dtype wanted = dense_dtype(dtype);
        if (wanted == Dtype::float32) {
            kept_.push_back(nb::find(rows));
            return table;
        }
        nb::gil_scoped_release release;
        return model_.rounded(table, count, wanted);
    }

    // --- a sweep's rows, as engine.backends.protocol.Row has them ---
    void read_rows(nb::sequence rows, nb::mapping block_tables) {
        rows_.clear();
        table_of_.clear();
        size_t num_tables = 0;
        for (nb::handle entry : rows) {
            if (!PyTuple_Check(entry.ptr()) || PyTuple_GET_SIZE(entry.ptr()) != 7)
                throw std::invalid_argument("a row is a tuple of seven");
            const auto field = [&](int i) { return PyTuple_GET_ITEM(entry.ptr(), i); };
            const auto optional = [&](int i, const std::string& what, const char* fault) {
                if (field(i) == Py_None) return -1;
                const int value = to_int(field(i), what.c_str());
                if (value < 0)
                    throw std::invalid_argument(what + " " + std::to_string(value) + fault);
                return value;
            };
            Row row{};
            row.position = to_int(field(1), "position");
            row.first = to_int(field(2), "first layer");
            row.last = to_int(field(3), "last layer");
            row.token = optional(4, "token", " is not in the vocabulary");
            row.source = optional(5, "exit state", " was not allocated");
            row.target = optional(6, "exit state", " was not allocated");
            check(row);
            const long key = to_long(field(0), "sequence");
            const auto [known, is_new] = table_of_.try_emplace(key, int(num_tables));
            if (is_new) {
                if (num_tables == tables_.size()) tables_.emplace_back();
                read_table(block_tables, field(0), tables_[num_tables++]);
            }
            row.table = known->second;
            if (row.position / model_.block_size() >= int(tables_[row.table].size()))
                throw std::invalid_argument("sequence " + std::to_string(key) +
                                            " has no block for position " +
                                            std::to_string(row.position));
            rows_.push_back(row);
        }
    }

    void check(const Row& row) const {
        const Shape& shape = model_.shape();
        const auto text = [](int value) { return std::to_string(value); };
        if (row.first < 0 || row.first >= row.last || row.last > shape.layers)
            throw std::invalid_argument("layers " + text(row.first) + ".." + text(row.last) +
                                        " are not in the model");
        if ((row.token < 0) == (row.source < 0))
            throw std::invalid_argument("a row starts either from a token or from a saved state");
        if (row.token >= 0 && row.first)
            throw std::invalid_argument("a row that starts from a token starts at layer 0");
        if (row.token >= shape.vocab)
            throw std::invalid_argument("token " + text(row.token) + " is not in the vocabulary");
        if (row.position < 0 || row.position >= shape.positions)
            throw std::invalid_argument("position " + text(row.position) +
                                        " is outside the trained context");
        for (int state : {row.source, row.target})
            if (state >= model_.state_count())
                throw std::invalid_argument("exit state " + text(state) + " was not allocated");
    }

    void read_table(nb::mapping block_tables, PyObject* key, std::vector<int32_t>& table) {
        table.clear();
        const nb::object blocks = block_tables[nb::handle(key)];
        for (nb::handle block : blocks) {
            const int id = to_int(block.ptr(), "block");
            if (id < 0 || id >= model_.block_count())
                throw std::invalid_argument("block " + std::to_string(id) + " was not allocated");
            table.push_back(id);
        }
    }

    size_t read_picks(const FloatRows& residuals, nb::sequence rows, nb::sequence depths) {
        const Shape& shape = model_.shape();
        if (int(residuals.shape(1)) != shape.hidden)
            throw std::invalid_argument("residuals of a wrong width");
        sources_.clear();
        depths_.clear();
        for (nb::handle entry : rows) {
            const int row = to_int(entry.ptr(), "row");
            if (row < 0 || row >= int(residuals.shape(0)))
                throw std::invalid_argument("row " + std::to_string(row) + " is not in the sweep");
            sources_.push_back(residuals.data() + ptrdiff_t(row) * shape.hidden);
        }
        for (nb::handle entry : depths) {
            const int depth = to_int(entry.ptr(), "depth");
            if (depth < 1 || depth > shape.layers)
                throw std::invalid_argument("depth " + std::to_string(depth) + " is not in the model");
            depths_.push_back(depth);
        }
        if (sources_.size() != depths_.size())
            throw std::invalid_argument(std::to_string(sources_.size()) + " rows, but " +
                                        std::to_string(depths_.size()) + " depths");
        return sources_.size();
    }

    const Kernels& kernels_;
    const std::string linears_;  // what the linears are held in
    Model model_;
    // Arrays that the model points into.
    std::vector<nb::object> kept_, kept_codes_;
    bool busy_ = false;

    // Reused from call to call.
    std::vector<Row> rows_;
    std::unordered_map<long, int> table_of_;
    std::vector<std::vector<int32_t>> tables_;
    std::vector<const float*> sources_;
    std::vector<int> depths_;
    std::vector<Draw> draws_;
    std::vector<Pick> picks_;
};

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The CPU backend's native half; engine.backends.cpu.backend is its only user.";
    m.def("runnable_isas", runnable_isas, "Instruction sets of this build and machine, best first.");
    nb::class_<Binding>(m, "Model")
        .def(nb::init<int, int, int, int, int, int, int, int, float, bool, const std::string&, int,
                      const std::string&, int, const std::string&>(),
             nb::kw_only(), "layers"_a, "hidden"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "ffn"_a,
             "vocab"_a, "positions"_a, "eps"_a, "exit_norm"_a, "linears"_a, "activation_max"_a,
             "hadamard"_a, "threads"_a, "isa"_a)
        .def_prop_ro("isa", &Binding::isa)
        .def("set_ternary_layer", &Binding::set_ternary_layer)
        .def("set_dense_layer", &Binding::set_dense_layer)
        .def("set_final_norm", &Binding::set_final_norm)
        .def("set_rotary", &Binding::set_rotary)
        .def("set_embedding", &Binding::set_embedding)
        .def("set_head", &Binding::set_head)
        .def("set_draft_ids", &Binding::set_draft_ids)
        .def("finish", &Binding::finish)
        .def("allocate", &Binding::allocate)
        .def("sweep", &Binding::sweep)
        .def("logits", &Binding::logits)
        .def("pick", &Binding::pick)
        .def("kv_bytes", &Binding::kv_bytes,
             "For tests: one layer of a block, as `Model::kv_memory` lays it out.")
        .def("state_bytes", &Binding::state_bytes, "For tests: an exit state's float32 values.");
}

}  // namespace bitskip
