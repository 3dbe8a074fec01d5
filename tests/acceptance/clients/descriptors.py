"""The protocol as a client's own generated code has it: a FileDescriptorSet of the modules named, in base64."""

import base64
import importlib
import sys

from google.protobuf.descriptor_pb2 import FileDescriptorSet

found = FileDescriptorSet()
for name in sys.argv[1:]:
    importlib.import_module(name).DESCRIPTOR.CopyToProto(found.file.add())
print(base64.b64encode(found.SerializeToString()).decode())
