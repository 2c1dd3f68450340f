gateway {
  listen = "tcp://0.0.0.0:1"
}
driver "native" {}
