"""Point ids and vectors, from and to protobuf."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import qdrant_edge as edge
from qdrant_client import grpc as pb

from standalone.qdrant_edge.errors import invalid, unsupported

# How the API names the vector of a collection that has only one.
DEFAULT_VECTOR = ""

EdgeId: TypeAlias = int | uuid.UUID | str
# The engine knows multi-vectors too; none are ever stored here.
NamedVector: TypeAlias = list[float] | list[list[float]] | edge.SparseVector


@dataclass(frozen=True)
class VectorSchema:
    """The vectors of a collection: size by name of the dense ones, names of the sparse ones."""

    dense: Mapping[str, int]
    sparse: frozenset[str]


def to_edge_id(point_id: pb.PointId) -> EdgeId:
    """An unsigned integer or a UUID in text form."""
    kind = point_id.WhichOneof("point_id_options")
    if kind is None:
        raise invalid("Malformed PointId type")
    return point_id.num if kind == "num" else point_id.uuid


def to_point_id(edge_id: EdgeId) -> pb.PointId:
    """The reverse of `to_edge_id`."""
    return pb.PointId(num=edge_id) if isinstance(edge_id, int) else pb.PointId(uuid=str(edge_id))


def to_edge_vectors(vectors: pb.Vectors, schema: VectorSchema) -> dict[str, NamedVector]:
    """The vectors of one point, checked against the schema.

    The engine logs a write before it checks it, and would meet a bad one again at every start: nothing that
    it refuses may reach it.
    """
    kind = vectors.WhichOneof("vectors_options")
    if kind is None:
        raise invalid("Expected some vectors")
    if kind == "vector":
        return {DEFAULT_VECTOR: _checked_vector(DEFAULT_VECTOR, vectors.vector, schema)}
    return {name: _checked_vector(name, vector, schema) for name, vector in vectors.vectors.vectors.items()}


def to_query_vector(vector: pb.VectorInput) -> NamedVector:
    """A vector given in a query; ids are resolved by the caller."""
    kind = vector.WhichOneof("variant")
    if kind == "dense":
        return vector.dense.data[:]
    if kind == "sparse":
        return _sparse(vector.sparse.indices[:], vector.sparse.values[:])
    raise unsupported(f"a query by {kind}")


def to_vectors_output(vectors: Any) -> pb.VectorsOutput:
    """The vectors of one point for a response."""
    if isinstance(vectors, dict):
        named = {name: _to_vector_output(vector) for name, vector in vectors.items()}
        return pb.VectorsOutput(vectors=pb.NamedVectorsOutput(vectors=named))
    return pb.VectorsOutput(vector=_to_vector_output(vectors))


def _checked_vector(name: str, vector: pb.Vector, schema: VectorSchema) -> NamedVector:
    if name not in schema.dense and name not in schema.sparse:
        raise invalid(f"Not existing vector name error: {name}")
    converted = _to_edge_vector(vector)
    if isinstance(converted, edge.SparseVector) != (name in schema.sparse):
        raise invalid("Conversion between sparse and regular vectors failed")
    if isinstance(converted, list) and len(converted) != schema.dense[name]:
        expected = schema.dense[name]
        raise invalid(f"Vector dimension error: expected dim: {expected}, got {len(converted)}")
    return converted


def _to_edge_vector(vector: pb.Vector) -> NamedVector:
    kind = vector.WhichOneof("vector")
    if kind == "dense":
        return vector.dense.data[:]
    if kind == "sparse":
        return _sparse(vector.sparse.indices[:], vector.sparse.values[:])
    if kind is not None:
        raise unsupported(f"a vector given as {kind}")
    # Clients before 1.13 leave the kind out.
    if vector.HasField("indices"):
        return _sparse(vector.indices.data[:], vector.data[:])
    return vector.data[:]


def _sparse(indices: list[int], values: list[float]) -> edge.SparseVector:
    if len(indices) != len(values):
        raise invalid(f"must be the same length as indices: {len(indices)} indices, {len(values)} values")
    if len(set(indices)) != len(indices):
        raise invalid("indices of a sparse vector must be unique")
    return edge.SparseVector(indices, values)


def _to_vector_output(vector: Any) -> pb.VectorOutput:
    if isinstance(vector, edge.SparseVector):
        return pb.VectorOutput(sparse=pb.SparseVector(indices=vector.indices, values=vector.values))
    return pb.VectorOutput(dense=pb.DenseVector(data=vector))
