gateway {
  listen = "unix:///run/sandgate/one.sock"
}

driver "native" {
  expose {
    socket = "/run/sandgate/one.sock"
  }
}

driver "a" {
  socket = "unix:///run/other.sock"
}

driver "b" {
  socket = "unix:///run//other.sock"
}

driver "c" {
  socket = "/run/third.sock"
}
