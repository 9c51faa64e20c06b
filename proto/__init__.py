"""The wire: protobuf contracts, the frame codec of the lanes, and the errors that cross a process boundary."""
