driver "native" {}
driver "native" {}
