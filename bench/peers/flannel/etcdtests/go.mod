module go.etcd.io/etcd/tests/v3

go 1.26.0
