"""Search beside plain FAISS, hnswlib and milvus-lite: data, peers, turns, the wire, filters, the report."""
