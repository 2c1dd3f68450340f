extension "x" {
  command = "relative"
  env     = { A = "hush", "B=C" = "hush" }
}
driver "native" {}
