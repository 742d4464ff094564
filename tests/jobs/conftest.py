from tests.cluster.conftest import s3_server
from tests.jobs.s3_with_faults import faulty_s3

__all__ = ["faulty_s3", "s3_server"]
